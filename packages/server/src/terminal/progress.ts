import cliProgress from 'cli-progress';
import { formatBytes } from '@moe-server/core';
import type { TerminalStream } from './terminal.js';

export interface Progress {
  readonly update: (done: number, total: number) => void;
  /** Leaves the last state on the screen. */
  readonly stop: () => void;
}

/**
 * A bar on a terminal; one line per 10 % everywhere else, so that logs stay short.
 *
 * @param format - of what is counted; bytes unless said otherwise.
 */
export function createProgress(stream: TerminalStream, label: string, format: (count: number) => string = formatBytes): Progress {
  return stream.isTTY === true ? progressBar(stream, label, format) : progressLines(stream, label, format);
}

function progressBar(stream: TerminalStream, label: string, format: (count: number) => string): Progress {
  const bar = new cliProgress.SingleBar({
    format: `${label}{bar} {percentage} %  {counts}`,
    barsize: 32,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    hideCursor: true,
    gracefulExit: false,
    stream: stream as NodeJS.WritableStream,
  });
  let isStarted = false;
  return {
    update: (done, total) => {
      const payload = { counts: `${format(done)} of ${format(total)}` };
      if (!isStarted) bar.start(total, done, payload);
      else bar.update(done, payload);
      isStarted = true;
    },
    stop: () => {
      bar.stop();
    },
  };
}

function progressLines(stream: TerminalStream, label: string, format: (count: number) => string): Progress {
  let lastTenth = -1;
  return {
    update: (done, total) => {
      const tenth = total === 0 ? 10 : Math.floor((done / total) * 10);
      if (tenth <= lastTenth) return;
      lastTenth = tenth;
      stream.write(`${label}${String(tenth * 10)} % of ${format(total)}\n`);
    },
    stop: () => undefined,
  };
}
