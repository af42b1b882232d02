import type { Multiple, Range } from '../backend.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import type { LayerVariant } from './cases.js';

/**
 * A size that a rule allows and the format can express.
 *
 * - `usual` (and `subset`, `fused`): the first at or above `wanted`, or the largest allowed below it.
 * - `smallest`: the smallest allowed.
 * - `odd-multiples`: the first odd multiple, from `times` on, of the unit.
 *
 * @param scheme - of the weights whose columns this is; undefined for rows.
 * @returns undefined when the rule allows no such size.
 */
export function sizeFor(
  variant: LayerVariant | 'fused',
  size: Multiple,
  scheme: string | undefined,
  wanted: number,
  times: number,
): number | undefined {
  const groupColumns = scheme === undefined ? 1 : (schemeInfo(scheme)?.groupColumns ?? 1);
  const unit = leastCommonMultiple(size.multipleOf, groupColumns);
  const smallest = Math.ceil(Math.max(size.min ?? 1, 1) / unit) * unit;
  const largest = Math.floor((size.max ?? Infinity) / unit) * unit;
  if (smallest > largest) return undefined;
  if (variant === 'smallest') return smallest;
  if (variant !== 'odd-multiples') return Math.max(smallest, Math.min(largest, Math.ceil(wanted / unit) * unit));
  // Large units make large layers: three times is odd enough then.
  const first = unit * times <= 1024 ? times : 3;
  const multiple = Math.max(first, smallest / unit);
  const odd = (multiple % 2 === 1 ? multiple : multiple + 1) * unit;
  return odd <= largest ? odd : undefined;
}

/** `value` moved into the interval. */
export function clampTo(range: Range, value: number): number {
  return Math.min(Math.max(value, range.min ?? -Infinity), range.max ?? Infinity);
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}
