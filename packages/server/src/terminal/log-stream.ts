import type { DestinationStream } from 'pino';
import { paint } from './terminal.js';
import type { TerminalStream } from './terminal.js';

interface LogLine {
  readonly level: number;
  readonly time: number;
  readonly msg: string;
  readonly method?: string;
  readonly path?: string;
  readonly status?: number;
  readonly ms?: number;
  readonly prompt_tokens?: number;
  readonly completion_tokens?: number;
  readonly aborted?: boolean;
  readonly reason?: string;
  readonly err?: { readonly stack?: string };
}

/** JSON lines for machines; for a person at a terminal one short line each. */
export function logStream(stream: TerminalStream): DestinationStream {
  if (stream.isTTY !== true) return { write: (line) => void stream.write(line) };
  return {
    write: (line) => {
      stream.write(formatLine(stream, JSON.parse(line) as LogLine));
    },
  };
}

function formatLine(stream: TerminalStream, line: LogLine): string {
  const time = paint(stream, 'dim', new Date(line.time).toTimeString().slice(0, 8));
  const level = line.level >= 50 ? paint(stream, 'red', ' error') : line.level >= 40 ? paint(stream, 'yellow', ' warning') : '';
  const text = line.method === undefined ? line.msg : formatRequest(stream, line);
  const reason = line.reason ?? line.err?.stack;
  const cause = reason === undefined ? '' : `: ${reason}`;
  return `${time}${level} ${text}${cause}\n`;
}

function formatRequest(stream: TerminalStream, line: LogLine): string {
  const status = line.status ?? 0;
  const tokens =
    line.prompt_tokens === undefined ? '' : `, ${String(line.prompt_tokens)} tokens in, ${String(line.completion_tokens ?? 0)} out`;
  const outcome = line.aborted === true ? 'the client left' : String(status);
  const shown = status >= 400 ? paint(stream, 'yellow', outcome) : outcome;
  return `${line.method ?? ''} ${line.path ?? ''} ${shown} in ${String(line.ms ?? 0)} ms${tokens}`;
}
