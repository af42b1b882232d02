export interface ErrorFigures {
  /** sum of (actual − reference)² / sum of reference². */
  readonly nmse: number;
  /** Over the root mean square of the reference. */
  readonly maxError: number;
  /** Where the largest error is. */
  readonly worstIndex: number;
}

/** How far `actual` is from `reference`. A NaN or infinity where the reference is finite counts as an infinite error. */
export function measureError(actual: ArrayLike<number>, reference: ArrayLike<number>): ErrorFigures {
  let error = 0;
  let norm = 0;
  let largest = 0;
  let worstIndex = 0;
  for (let i = 0; i < reference.length; i++) {
    const expected = reference[i]!;
    const difference = Math.abs(actual[i]! - expected);
    const finite = Number.isNaN(difference) ? Infinity : difference;
    error += finite ** 2;
    norm += expected ** 2;
    if (finite > largest) {
      largest = finite;
      worstIndex = i;
    }
  }
  const rms = Math.sqrt(norm / reference.length);
  return {
    nmse: error === 0 ? 0 : error / norm,
    maxError: largest === 0 ? 0 : largest / rms,
    worstIndex,
  };
}
