import cliProgress from 'cli-progress';
import { formatBytes } from '@moe-server/core';
import type { TerminalStream } from './terminal.js';

export interface Progress {
  readonly update: (done: number, total: number) => void;
  /** Leaves the last state on the screen. */
  readonly stop: () => void;
}

/** A bar on a terminal; one line per 10 % everywhere else, so that logs stay short. */
export function createProgress(stream: TerminalStream, label: string): Progress {
  return stream.isTTY === true ? progressBar(stream, label) : progressLines(stream, label);
}

function progressBar(stream: TerminalStream, label: string): Progress {
  const bar = new cliProgress.SingleBar({
    format: `${label}{bar} {percentage} %  {bytes}`,
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
      const payload = { bytes: `${formatBytes(done)} of ${formatBytes(total)}` };
      if (!isStarted) bar.start(total, done, payload);
      else bar.update(done, payload);
      isStarted = true;
    },
    stop: () => {
      bar.stop();
    },
  };
}

function progressLines(stream: TerminalStream, label: string): Progress {
  let lastTenth = -1;
  return {
    update: (done, total) => {
      const tenth = total === 0 ? 10 : Math.floor((done / total) * 10);
      if (tenth <= lastTenth) return;
      lastTenth = tenth;
      stream.write(`${label}${String(tenth * 10)} % of ${formatBytes(total)}\n`);
    },
    stop: () => undefined,
  };
}
