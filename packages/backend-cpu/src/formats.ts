import type { InputQuantization, SchemeKey } from '@moe-server/core';
import { schemeInfo } from '@moe-server/core';
import type { InputKind, WeightFormat } from './addon.js';

/** Every scheme of the core: what both backends of this package run. */
export type CpuScheme =
  | 'nvfp4.w4a4'
  | 'nvfp4.w4a16'
  | 'fp8.tensor.static'
  | 'fp8.tensor.dynamic'
  | 'fp8.channel'
  | 'fp8.block128'
  | 'mxfp4.w4a16'
  | 'bf16'
  | 'f16';

const formats: Readonly<Record<CpuScheme, WeightFormat>> = {
  'nvfp4.w4a4': 'nvfp4',
  'nvfp4.w4a16': 'nvfp4',
  'fp8.tensor.static': 'fp8',
  'fp8.tensor.dynamic': 'fp8',
  'fp8.channel': 'fp8',
  'fp8.block128': 'fp8-block128',
  'mxfp4.w4a16': 'mxfp4',
  bf16: 'bf16',
  f16: 'f16',
};

/** Format in which the weights of a scheme are packed. */
export function formatOf(scheme: CpuScheme): WeightFormat {
  return formats[scheme];
}

/** True for the schemes of {@link CpuScheme}: a spec may name those of other plugins. */
export function isCpuScheme(scheme: SchemeKey): scheme is CpuScheme {
  return Object.hasOwn(formats, scheme);
}

/** How a kernel that follows the scheme to the letter represents its input. */
export function inputKindOf(scheme: CpuScheme): InputKind {
  const quantization: InputQuantization = schemeInfo(scheme)?.input ?? { type: 'none' };
  if (quantization.type === 'nvfp4') return 'nvfp4';
  if (quantization.type !== 'fp8') return 'float';
  if (quantization.granularity === 'group128') return 'fp8-group128';
  return quantization.scale === 'static' ? 'fp8-static' : 'fp8-token';
}

/** Rows of a tile of the layout `cpu/r16@1`. */
export const tileRows = 16;

/** Columns that lie together in a tile, and the bytes of 16 rows of them, scales included. The same numbers as in native/weight_format.h. */
const blocks: Readonly<Record<WeightFormat, { readonly columns: number; readonly bytes: number }>> = {
  nvfp4: { columns: 64, bytes: 64 + 512 },
  mxfp4: { columns: 128, bytes: 64 + 1024 },
  fp8: { columns: 16, bytes: 256 },
  'fp8-block128': { columns: 16, bytes: 256 },
  bf16: { columns: 16, bytes: 512 },
  f16: { columns: 16, bytes: 512 },
};

/** Bytes of one packed matrix, factors and bias included. */
export function packedBytes(format: WeightFormat, rows: number, columns: number, hasBias: boolean): number {
  const { columns: unit, bytes } = blocks[format];
  const tiles = Math.ceil(rows / tileRows);
  const blockScales = format === 'fp8-block128' ? Math.ceil(rows / 128) * Math.ceil(columns / 128) : 0;
  return tiles * Math.ceil(columns / unit) * bytes + 4 * (tiles * tileRows * (hasBias ? 2 : 1) + blockScales);
}
