import { MoeError } from '../errors.js';
import { decodeBf16Weights } from './bf16.js';
import { decodeF16Weights } from './f16.js';
import { decodeFp8BlockWeights, decodeFp8ChannelWeights, decodeFp8TensorWeights } from './fp8.js';
import { decodeMxfp4Weights } from './mxfp4.js';
import { decodeNvfp4Weights } from './nvfp4.js';
import type { SchemeKey, SchemeRegistry } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

/** The weights of any scheme that the core itself knows. */
type BuiltInWeights = SchemeRegistry[
  | 'nvfp4.w4a4'
  | 'nvfp4.w4a16'
  | 'fp8.tensor.static'
  | 'fp8.tensor.dynamic'
  | 'fp8.channel'
  | 'fp8.block128'
  | 'mxfp4.w4a16'
  | 'bf16'
  | 'f16'];

/**
 * What a matrix means, [rows, columns] row-major: the values that a checkpoint's exporter would decode to, bit for bit in float32.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION for a scheme that a plugin added; only the plugin knows its layout.
 */
export function decodeWeights(weights: SchemeRegistry[SchemeKey]): Float32Array {
  const known = weights as BuiltInWeights;
  switch (known[SCHEME]) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16':
      return decodeNvfp4Weights(known);
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic':
      return decodeFp8TensorWeights(known);
    case 'fp8.channel':
      return decodeFp8ChannelWeights(known);
    case 'fp8.block128':
      return decodeFp8BlockWeights(known);
    case 'mxfp4.w4a16':
      return decodeMxfp4Weights(known);
    case 'bf16':
      return decodeBf16Weights(known);
    case 'f16':
      return decodeF16Weights(known);
    default: {
      const scheme = String((known as { readonly [SCHEME]: unknown })[SCHEME]);
      throw new MoeError(
        'MOE_UNSUPPORTED_QUANTIZATION',
        `The core cannot decode weights of the scheme "${scheme}"; only the plugin that defines it can.`,
        {
          scheme,
        },
      );
    }
  }
}
