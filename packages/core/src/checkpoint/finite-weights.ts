import type { DType } from '../dtype.js';
import { bytesOf } from '../dtype.js';
import { wordView } from '../quant/word-view.js';
import { tensorError } from './module-tensors.js';
import type { TensorInfo } from './safetensors.js';

/**
 * For each type two masks over a word of four bytes: without its sign, a NaN or infinity is what `carry` lifts into the sign's place.
 * e4m3 has NaN only, 0x7F; the others have all bits of the exponent set.
 */
const patterns: Partial<Record<DType, { readonly magnitude: number; readonly carry: number }>> = {
  f8e4m3: { magnitude: 0x7f7f7f7f, carry: 0x01010101 },
  bf16: { magnitude: 0x7fff7fff, carry: 0x00800080 },
  f16: { magnitude: 0x7fff7fff, carry: 0x04000400 },
  f32: { magnitude: 0x7fffffff, carry: 0x00800000 },
};

/**
 * Refuses weights that are NaN or infinite: one of them turns every answer into noise or NaN. Sixteen bytes at a time, so that a load does
 * not feel it. Types without such values pass.
 *
 * @param bytes - the tensor or a part of it, aligned for its element type.
 * @param indexOfFirst - index within the tensor of the first element of `bytes`, for the message.
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR naming tensor and index.
 */
export function checkFiniteWeights(info: TensorInfo, bytes: Uint8Array<ArrayBuffer>, indexOfFirst = 0): void {
  const pattern = patterns[info.dtype];
  if (pattern === undefined) return;
  const { magnitude, carry } = pattern;
  const signs = ~magnitude;
  const { head, words } = wordView(bytes, 4);
  checkEach(info, 0, head, bytes, indexOfFirst);
  let found = 0;
  // Four words are looked at together; "| 0" keeps the sums 32-bit integers.
  for (let i = 0; i < words.length && found === 0; i += 4) {
    const a = ((words[i]! & magnitude) + carry) | 0;
    const b = ((words[i + 1]! & magnitude) + carry) | 0;
    const c = ((words[i + 2]! & magnitude) + carry) | 0;
    const d = ((words[i + 3]! & magnitude) + carry) | 0;
    found = (a | b | c | d) & signs;
  }
  checkEach(info, found === 0 ? head + words.length * 4 : head, bytes.length, bytes, indexOfFirst);
}

/** Element by element from byte `begin` to byte `end`. */
function checkEach(info: TensorInfo, begin: number, end: number, bytes: Uint8Array<ArrayBuffer>, indexOfFirst: number): void {
  const size = bytesOf(info.dtype);
  for (let at = begin; at < end; at += size) {
    if (!isNotFinite(info.dtype, bytes, at)) continue;
    const index = indexOfFirst + at / size;
    throw tensorError(info, `element ${String(index)} is NaN or infinite; weights must be numbers. Download the checkpoint again`, {
      index,
    });
  }
}

function isNotFinite(dtype: DType, bytes: Uint8Array<ArrayBuffer>, at: number): boolean {
  if (dtype === 'f8e4m3') return (bytes[at]! & 0x7f) === 0x7f;
  const exponent = dtype === 'f16' ? 0x7c00 : 0x7f80;
  // The exponent of float32 lies in its upper half, as that of bfloat16.
  if (dtype === 'f32') return ((bytes[at + 2]! | (bytes[at + 3]! << 8)) & exponent) === exponent;
  return ((bytes[at]! | (bytes[at + 1]! << 8)) & exponent) === exponent;
}
