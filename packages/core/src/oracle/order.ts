/** By code units: the same on every machine, whatever its language. */
export function compareText(a: string, b: string): number {
  return a < b ? -1 : Number(a > b);
}

/** Ascending. Infinity equals itself here; the difference of two would be NaN. */
export function compareNumbers(a: number, b: number): number {
  return a === b ? 0 : a - b;
}
