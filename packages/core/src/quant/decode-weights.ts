import { MoeError } from '../errors.js';
import { decodeBf16Weights } from './bf16.js';
import { decodeF16Weights } from './f16.js';
import { decodeFp8BlockWeights, decodeFp8ChannelWeights, decodeFp8TensorWeights } from './fp8.js';
import { decodeMxfp4Weights } from './mxfp4.js';
import { decodeNvfp4Weights } from './nvfp4.js';
import type { SchemeKey, SchemeRegistry } from './quant-scheme.js';
import { SCHEME } from './quant-scheme.js';

/**
 * What a matrix means, [rows, columns] row-major: the values that a checkpoint's exporter would decode to, bit for bit in float32.
 *
 * @throws {MoeError} MOE_UNSUPPORTED_QUANTIZATION for a scheme that a plugin added; only the plugin knows its layout.
 */
export function decodeWeights(weights: SchemeRegistry[SchemeKey]): Float32Array {
  switch (weights[SCHEME]) {
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16':
      return decodeNvfp4Weights(weights);
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic':
      return decodeFp8TensorWeights(weights);
    case 'fp8.channel':
      return decodeFp8ChannelWeights(weights);
    case 'fp8.block128':
      return decodeFp8BlockWeights(weights);
    case 'mxfp4.w4a16':
      return decodeMxfp4Weights(weights);
    case 'bf16':
      return decodeBf16Weights(weights);
    case 'f16':
      return decodeF16Weights(weights);
    default: {
      const scheme = String((weights as { readonly [SCHEME]: unknown })[SCHEME]);
      throw new MoeError(
        'MOE_UNSUPPORTED_QUANTIZATION',
        `The core cannot decode weights of the scheme "${scheme}"; only the plugin that defines it can.`,
        { scheme },
      );
    }
  }
}
