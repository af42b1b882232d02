import type { InputArithmetic } from '../arithmetic.js';
import { MoeError } from '../errors.js';
import { roundToBf16 } from '../quant/bf16.js';
import { roundToF16 } from '../quant/f16.js';
import { applyInputQuantization } from '../quant/input-quantization.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import type { InputQuantization } from '../quant/quant-scheme.js';

/**
 * The quantization that a rule's input arithmetic means for weights of `scheme`; `none` for floats.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION when nobody defined the scheme.
 */
export function inputQuantizationOf(input: InputArithmetic, scheme: string): InputQuantization {
  if (input.type === 'float') return { type: 'none' };
  if (input.type === 'own') return input.quantization;
  const info = schemeInfo(scheme);
  if (info === undefined) {
    throw new MoeError(
      'MOE_UNSUPPORTED_QUANTIZATION',
      `The reference cannot quantize inputs as "${scheme}" asks: no package defined that scheme.`,
      { scheme },
    );
  }
  return info.input;
}

/**
 * What input rows become before they meet a weight: rounded, or quantized and decoded again.
 *
 * @param rows - [numRows, columns] float32, row-major; left as they are.
 * @param inputScale - the calibrated scale of the weights that will read the rows; static quantization needs it.
 * @throws {MoeError} MOE_PLUGIN_RULE when the arithmetic wants a static scale and the weights carry none.
 */
export function prepareInput(
  input: InputArithmetic,
  scheme: string,
  rows: Float32Array,
  columns: number,
  inputScale: number | undefined,
): Float32Array {
  if (input.type === 'float') return roundRows(rows, input.dtype);
  const quantization = inputQuantizationOf(input, scheme);
  if (inputScale === undefined && needsStaticScale(quantization)) {
    throw new MoeError(
      'MOE_PLUGIN_RULE',
      `The rule quantizes inputs with a static scale (${JSON.stringify(quantization)}), but the ${scheme} weights carry none. Declare a dynamic scale, or leave the scheme out of the rule.`,
      { scheme, quantization },
    );
  }
  return applyInputQuantization(rows, columns, quantization, inputScale);
}

function needsStaticScale(quantization: InputQuantization): boolean {
  return quantization.type === 'nvfp4' || (quantization.type === 'fp8' && quantization.scale === 'static');
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * Float64 values as the type holds them, rounded once. By way of the nearest float32, values beside the middle of two bfloat16 would land on
 * it, and half of them on the wrong side; of the two float32 around a value the odd one keeps its side.
 */
export function roundOnce(values: Float64Array, dtype: 'f32' | 'bf16' | 'f16'): Float32Array {
  if (dtype === 'f32') return Float32Array.from(values);
  return roundRows(Float32Array.from(values, nearestOrOdd), dtype);
}

/** The float32 equal to `value`, else the neighbour whose last bit is set. */
function nearestOrOdd(value: number): number {
  float[0] = value;
  const nearest = float[0];
  if (nearest === value || !Number.isFinite(nearest) || bits[0]! % 2 === 1) return nearest;
  bits[0]! += Math.abs(nearest) < Math.abs(value) ? 1 : -1;
  return float[0];
}

/** Rows as the type holds them; the same array for f32. */
function roundRows(rows: Float32Array, dtype: 'f32' | 'bf16' | 'f16'): Float32Array {
  if (dtype === 'f32') return rows;
  return rows.map(dtype === 'bf16' ? roundToBf16 : roundToF16);
}
