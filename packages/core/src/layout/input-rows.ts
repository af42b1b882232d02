import type { Arithmetic } from '../arithmetic.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import type { InputQuantization } from '../quant/quant-scheme.js';

/**
 * Bytes of one input row in the form in which it meets weights of `scheme`, scales included: what a kernel's workspace has to hold per row.
 * Float inputs count as their own type; scales of FP4 groups are one byte, all others four.
 */
export function inputRowBytes({ input }: Arithmetic, scheme: string, columns: number): number {
  if (input.type === 'float') return columns * (input.dtype === 'f32' ? 4 : 2);
  const quantization: InputQuantization = input.type === 'own' ? input.quantization : (schemeInfo(scheme)?.input ?? { type: 'none' });
  switch (quantization.type) {
    case 'none':
      return columns * 2;
    case 'nvfp4':
      return columns / 2 + Math.ceil(columns / 16);
    case 'fp8':
      return columns + 4 * (quantization.granularity === 'group128' ? Math.ceil(columns / 128) : 1);
    case 'int8':
      return columns + 4 * (quantization.granularity === 'group32' ? Math.ceil(columns / 32) : 1);
  }
}
