/**
 * Quantization schemes: how the weights of one linear or expert lie in memory, and what the checkpoint asks for at its input.
 *
 * The set is an interface so that a plugin can extend it:
 *
 * ```ts
 * declare module '@moe-server/core' {
 *   interface SchemeRegistry { 'mine.w3a16': MyWeights }
 * }
 * ```
 *
 * Every weight object carries its scheme under {@link SCHEME}. The oracle compares keys before anything is read, and
 * the brand is compared again when weights are handed to a backend, so that neither a cast nor a second copy of this
 * package can put FP8 bytes into an FP4 kernel.
 */
export interface SchemeRegistry {
  /** NVFP4 weights, inputs quantized to NVFP4 with a static global scale and dynamic block scales. */
  'nvfp4.w4a4': Nvfp4Weights<'nvfp4.w4a4'>;
  /** NVFP4 weights, inputs left alone. */
  'nvfp4.w4a16': Nvfp4Weights<'nvfp4.w4a16'>;
  /** FP8 e4m3 weights with one scale; inputs quantized with one calibrated scale. */
  'fp8.tensor.static': Fp8TensorWeights<'fp8.tensor.static'>;
  /** FP8 e4m3 weights with one scale; inputs quantized with a scale per token found at run time. */
  'fp8.tensor.dynamic': Fp8TensorWeights<'fp8.tensor.dynamic'>;
  /** FP8 e4m3 weights with a scale per output row; inputs quantized with a scale per token found at run time. */
  'fp8.channel': Fp8ChannelWeights<'fp8.channel'>;
  /** FP8 e4m3 weights with a scale per 128x128 block; inputs quantized in groups of 128 along the row, at run time. */
  'fp8.block128': Fp8BlockWeights<'fp8.block128'>;
  /** MXFP4 weights (e2m1, one e8m0 scale per 32), inputs left alone. */
  'mxfp4.w4a16': Mxfp4Weights<'mxfp4.w4a16'>;
  /** bfloat16 weights, inputs left alone. */
  bf16: Bf16Weights<'bf16'>;
  /** IEEE half precision weights, inputs left alone. */
  f16: Fp16Weights<'f16'>;
}

export type SchemeKey = Extract<keyof SchemeRegistry, string>;

/** The family is the part of a key before the first dot: `fp8.block128` belongs to `fp8`. */
export type SchemeFamily = SchemeKey extends infer K ? (K extends `${infer F}.${string}` ? F : K) : never;

/** The brand that weights carry. `Symbol.for`, so that two copies of this package agree. */
export const SCHEME: unique symbol = Symbol.for('moe.scheme') as never;

interface WeightMatrix<S> {
  readonly [SCHEME]: S;
  /** Output features, N. */
  readonly rows: number;
  /** Input features, K. */
  readonly columns: number;
}

/**
 * w[n,k] = e2m1(code[n,k]) * scale(n, k/16), the block scale times (or, as compressed-tensors stores it, over) the global scale.
 *
 * @see docs/numerics.md#nvfp4
 */
export interface Nvfp4Weights<S = 'nvfp4.w4a4' | 'nvfp4.w4a16'> extends WeightMatrix<S> {
  /** [rows, columns/2] packed e2m1, even column in the low nibble. */
  readonly codes: Uint8Array;
  /** [rows, columns/16] e4m3 bytes, row-major. */
  readonly blockScales: Uint8Array;
  /** Float32 value as stored. modelopt: a factor (weight_scale_2). compressed-tensors: a divisor (weight_global_scale). */
  readonly globalScale: number;
  readonly globalScaleIs: 'factor' | 'divisor';
  /** The input's global scale as a factor (modelopt's input_scale, 1/input_global_scale), w4a4 only. */
  readonly inputScale: number | undefined;
}

/** w[n,k] = e4m3(code[n,k]) * scale. */
export interface Fp8TensorWeights<S = 'fp8.tensor.static' | 'fp8.tensor.dynamic'> extends WeightMatrix<S> {
  /** [rows, columns] e4m3 bytes. */
  readonly codes: Uint8Array;
  readonly scale: number;
  /** Static scale of the input; undefined when dynamic. */
  readonly inputScale: number | undefined;
}

/** w[n,k] = e4m3(code[n,k]) * rowScales[n]. */
export interface Fp8ChannelWeights<S = 'fp8.channel'> extends WeightMatrix<S> {
  /** [rows, columns] e4m3 bytes. */
  readonly codes: Uint8Array;
  /** [rows] */
  readonly rowScales: Float32Array;
}

/** w[n,k] = e4m3(code[n,k]) * blockScales[n/128, k/128]. */
export interface Fp8BlockWeights<S = 'fp8.block128'> extends WeightMatrix<S> {
  /** [rows, columns] e4m3 bytes. */
  readonly codes: Uint8Array;
  /** [ceil(rows/128), ceil(columns/128)] */
  readonly blockScales: Float32Array;
}

/** w[n,k] = e2m1(code[n,k]) * 2^(scale[n,k/32] - 127). */
export interface Mxfp4Weights<S = 'mxfp4.w4a16'> extends WeightMatrix<S> {
  /** [rows, columns/2] packed e2m1, even column in the low nibble. */
  readonly codes: Uint8Array;
  /** [rows, columns/32] e8m0 bytes. */
  readonly blockScales: Uint8Array;
}

export interface Bf16Weights<S = 'bf16'> extends WeightMatrix<S> {
  /** [rows, columns] bfloat16 bit patterns. */
  readonly values: Uint16Array;
}

export interface Fp16Weights<S = 'f16'> extends WeightMatrix<S> {
  /** [rows, columns] IEEE half bit patterns. */
  readonly values: Uint16Array;
}

/** How a scheme wants the input of a linear or expert represented. `none` = left as it is. */
export type InputQuantization =
  | { readonly type: 'none' }
  /** Groups of 16: e2m1 codes, e4m3 block scales found at run time, one static global scale. */
  | { readonly type: 'nvfp4'; readonly globalScale: 'static' }
  /** e4m3 codes. `static`: the calibrated scale; `dynamic`: amax/448 of the tensor, token or group of 128 columns. */
  | { readonly type: 'fp8'; readonly granularity: 'tensor' | 'token' | 'group128'; readonly scale: 'static' | 'dynamic' }
  /** Signed 8-bit integers with a scale per token or group; no supported checkpoint asks for it. */
  | { readonly type: 'int8'; readonly granularity: 'token' | 'group32' };

/** What the core knows of a scheme without its weights. */
export interface SchemeInfo {
  readonly key: string;
  readonly family: string;
  /** Bits a weight takes on average, scales of blocks included; scales of tensors and rows left out. */
  readonly bitsPerWeight: number;
  /** Columns must be a multiple of this for the format to be well formed. */
  readonly groupColumns: number;
  /** Rows and columns that share a scale, where that is a block whose last ones may be smaller; tensor parallel must not cut through one. */
  readonly block?: { readonly rows: number; readonly columns: number };
  /** What the checkpoint was calibrated for at the input. */
  readonly input: InputQuantization;
  /** One sentence for people. */
  readonly summary: string;
}

const schemes = new Map<string, SchemeInfo>();

/**
 * Adds a scheme, so that plans can name it and rules can list it. A key can be described once; describing it again in the
 * same words is allowed (two copies of a plugin), in other words is an error.
 *
 * @throws {TypeError} when the key is taken by a different description.
 */
export function defineScheme(info: SchemeInfo): void {
  const known = schemes.get(info.key);
  if (known !== undefined && JSON.stringify(known) !== JSON.stringify(info)) {
    throw new TypeError(`The quantization scheme "${info.key}" is already defined as: ${known.summary}`);
  }
  schemes.set(info.key, info);
}

/** The description of a scheme, or undefined when nobody defined it. */
export function schemeInfo(key: string): SchemeInfo | undefined {
  return schemes.get(key);
}

/** Every defined key, in order of definition. */
export function schemeKeys(): readonly string[] {
  return [...schemes.keys()];
}

/** `fp8.block128` → `fp8`. */
export function schemeFamily(key: string): string {
  const dot = key.indexOf('.');
  return dot < 0 ? key : key.slice(0, dot);
}

const none: InputQuantization = { type: 'none' };
const builtIn: readonly Omit<SchemeInfo, 'family'>[] = [
  {
    key: 'nvfp4.w4a4',
    bitsPerWeight: 4.5,
    groupColumns: 16,
    input: { type: 'nvfp4', globalScale: 'static' },
    summary: 'NVFP4 weights and inputs',
  },
  { key: 'nvfp4.w4a16', bitsPerWeight: 4.5, groupColumns: 16, input: none, summary: 'NVFP4 weights, inputs of 16 bits' },
  {
    key: 'fp8.tensor.static',
    bitsPerWeight: 8,
    groupColumns: 1,
    input: { type: 'fp8', granularity: 'tensor', scale: 'static' },
    summary: 'FP8 weights with one scale, inputs with a calibrated scale',
  },
  {
    key: 'fp8.tensor.dynamic',
    bitsPerWeight: 8,
    groupColumns: 1,
    input: { type: 'fp8', granularity: 'token', scale: 'dynamic' },
    summary: 'FP8 weights with one scale, inputs scaled per token',
  },
  {
    key: 'fp8.channel',
    bitsPerWeight: 8,
    groupColumns: 1,
    input: { type: 'fp8', granularity: 'token', scale: 'dynamic' },
    summary: 'FP8 weights with a scale per row, inputs scaled per token',
  },
  {
    key: 'fp8.block128',
    bitsPerWeight: 8,
    groupColumns: 1,
    block: { rows: 128, columns: 128 },
    input: { type: 'fp8', granularity: 'group128', scale: 'dynamic' },
    summary: 'FP8 weights in blocks of 128x128, inputs scaled per 128',
  },
  { key: 'mxfp4.w4a16', bitsPerWeight: 4.25, groupColumns: 32, input: none, summary: 'MXFP4 weights, inputs of 16 bits' },
  { key: 'bf16', bitsPerWeight: 16, groupColumns: 1, input: none, summary: 'bfloat16 weights' },
  { key: 'f16', bitsPerWeight: 16, groupColumns: 1, input: none, summary: 'half precision weights' },
];
for (const info of builtIn) defineScheme({ ...info, family: schemeFamily(info.key) });
