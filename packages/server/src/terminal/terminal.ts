/** Where a command writes: the process's streams, or a test's. */
export interface Terminal {
  readonly out: TerminalStream;
  /** Errors and logs. */
  readonly err: TerminalStream;
}

export interface TerminalStream {
  readonly write: (text: string) => unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

/** Colours only where somebody looks, and as https://no-color.org asks. */
export function paint(stream: TerminalStream, code: 'bold' | 'dim' | 'red' | 'green' | 'yellow', text: string): string {
  const isPlain = stream.isTTY !== true || process.env.NO_COLOR !== undefined;
  return isPlain ? text : `\u001b[${String(codes[code])}m${text}\u001b[0m`;
}

const codes = { bold: 1, dim: 2, red: 31, green: 32, yellow: 33 } as const;
