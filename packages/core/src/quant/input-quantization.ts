import { dequantizeFp8Input, quantizeFp8Input } from './fp8.js';
import { dequantizeNvfp4Input, quantizeNvfp4Input } from './nvfp4.js';
import type { InputQuantization } from './quant-scheme.js';

/**
 * What the input of a linear or expert becomes when it is quantized and decoded again. This is the reference that kernels of the class
 * *same* are judged by.
 *
 * @param x - [rows, columns] float32, row-major; left as it is.
 * @param staticScale - the calibrated scale (as a factor) where `quantization` has one.
 * @returns a new array, except for `none`, where it is `x` itself.
 * @throws {RangeError} when a static scale is needed and missing.
 */
export function applyInputQuantization(
  x: Float32Array,
  columns: number,
  quantization: InputQuantization,
  staticScale: number | undefined,
): Float32Array {
  switch (quantization.type) {
    case 'none':
      return x;
    case 'nvfp4':
      return dequantizeNvfp4Input(quantizeNvfp4Input(x, columns, required(staticScale)));
    case 'fp8': {
      const scale = quantization.scale === 'static' ? required(staticScale) : undefined;
      return dequantizeFp8Input(quantizeFp8Input(x, columns, quantization.granularity, scale));
    }
    case 'int8':
      return throughInt8(x, columns, quantization.granularity === 'token' ? columns : 32);
  }
}

function required(staticScale: number | undefined): number {
  if (staticScale === undefined)
    throw new RangeError('This input quantization needs the calibrated input scale of the weights, and they carry none.');
  return staticScale;
}

/** Symmetric, ±127, scale = amax/127 of the group, ties to even. */
function throughInt8(x: Float32Array, columns: number, groupColumns: number): Float32Array {
  const out = new Float32Array(x.length);
  for (let rowStart = 0; rowStart < x.length; rowStart += columns) {
    for (let first = rowStart; first < rowStart + columns; first += groupColumns) {
      const end = Math.min(first + groupColumns, rowStart + columns);
      let amax = 0;
      for (let i = first; i < end; i++) amax = Math.max(amax, Math.abs(x[i]!));
      const scale = Math.fround(amax / 127);
      if (scale === 0) continue;
      // 1.5 · 2^52 rounds a double of either sign to an integer, ties to even.
      for (let i = first; i < end; i++) out[i] = (Math.fround(x[i]! / scale) + 1.5 * 2 ** 52 - 1.5 * 2 ** 52) * scale;
    }
  }
  return out;
}
