import type { Figure, Workload } from './figures.js';

/** Columns of the table, in order. */
const headings = ['workload', 'engine', 'tokens/s', 'of floor', 'min–max'] as const;
const widths = [28, 12, 10, 10, 16] as const;

/** The heading of the table that {@link figureRows} fills. */
export function tableHeading(): string {
  return row(headings);
}

/** One line per engine, then one with what the floor was made from. */
export function figureRows({ workload, tokensPerSecond, bandwidth, floor, foreign }: Figure): string[] {
  const lines = Object.entries(tokensPerSecond).map(([kind, { median, min, max }], i) => {
    const reached = floor?.reached[kind];
    return row([
      i === 0 ? titleOf(workload) : '',
      kind,
      rate(median),
      reached === undefined ? '' : percent(reached),
      `${rate(min)}–${rate(max)}`,
    ]);
  });
  const [first, second] = Object.values(tokensPerSecond);
  const notes = [
    ...(first !== undefined && second !== undefined ? [`${(first.median / second.median).toFixed(2)} times the peer`] : []),
    ...(floor === undefined
      ? []
      : [
          `${(floor.bytesPerToken / 1e6).toFixed(1)} MB a token over ${bandwidth.map((value) => value.toFixed(1)).join(' and ')} GB/s (before, after) = ${rate(floor.tokensPerSecond)} tokens/s`,
        ]),
    // Half a tenth of a processor is what an idle system uses.
    ...(foreign !== undefined && foreign > 0.05 ? [`other programs used ${foreign.toFixed(2)} processors`] : []),
  ];
  return notes.length === 0 ? lines : [...lines, `    ${notes.join('; ')}`];
}

/** `prefill 512`, `decode at 128`, `decode at 128, 4 sequences`. */
function titleOf(workload: Workload): string {
  if (workload.type === 'prefill') return `prefill ${String(workload.numTokens)}`;
  const { contextLength, numSequences } = workload;
  return `decode at ${String(contextLength)}${numSequences > 1 ? `, ${String(numSequences)} sequences` : ''}`;
}

function row(cells: readonly string[]): string {
  return cells
    .map((cell, i) => cell.padEnd(widths[i] ?? 0))
    .join('')
    .trimEnd();
}

function rate(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

function percent(value: number): string {
  return `${(100 * value).toFixed(0)} %`;
}
