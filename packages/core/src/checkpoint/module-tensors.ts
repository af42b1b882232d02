import type { DType } from '../dtype.js';
import { MoeError } from '../errors.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import type { Checkpoint } from './checkpoint.js';
import type { TensorInfo } from './safetensors.js';
import { safetensorsDtypeName } from './safetensors.js';

/** Where the tensors of one matrix lie, dtypes and shapes checked. */
export interface ModuleTensors {
  readonly module: string;
  readonly scheme: SchemeKey;
  readonly rows: number;
  readonly columns: number;
  readonly weight: TensorInfo;
  /** Block scales of NVFP4 and MXFP4; the scale, row scales or block scales of FP8. */
  readonly scale?: TensorInfo;
  /** NVFP4. */
  readonly globalScale?: TensorInfo;
  readonly globalScaleIs?: 'factor' | 'divisor';
  /** Where the scheme uses one: modelopt's and FP8's is a factor, compressed-tensors' NVFP4 one a divisor. */
  readonly inputScale?: TensorInfo;
  readonly inputScaleIs?: 'factor' | 'divisor';
}

const scalar: readonly (readonly number[])[] = [[], [1]];
const fp8ScaleTypes: readonly DType[] = ['f32', 'bf16', 'f16'];

/**
 * Finds the tensors of a module and checks them against its scheme and size. Only headers are looked at.
 *
 * @param scheme - as the configuration has it; undefined = not quantized.
 * @returns with the scheme that the tensors have: `bf16` or `f16` for unquantized ones; `fp8.channel` where a file that says FP8 per tensor
 *   holds a scale per row (rare modelopt files).
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR naming the tensor, what was expected and what is there.
 */
export function locateModule(
  checkpoint: Checkpoint,
  module: string,
  scheme: SchemeKey | undefined,
  rows: number,
  columns: number,
): ModuleTensors {
  const at = new Locator(checkpoint, module, scheme);
  const base = { module, rows, columns };
  checkGroupColumns(module, scheme, columns);
  switch (scheme) {
    case undefined:
    case 'bf16':
    case 'f16': {
      const weight = at.plainWeight([rows, columns]);
      return { ...base, scheme: weight.dtype === 'f16' ? 'f16' : 'bf16', weight };
    }
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const weight = at.require(['weight_packed', 'weight'], ['u8'], [[rows, columns / 2]]);
      const scale = at.require(['weight_scale'], ['f8e4m3'], [[rows, columns / 16]]);
      const globalScale = at.require(['weight_scale_2', 'weight_global_scale'], ['f32'], scalar);
      const located = { ...base, scheme, weight, scale, globalScale, globalScaleIs: kindOfGlobalScale(globalScale) };
      // Weight-only exports may still carry an input_scale; it means nothing.
      if (scheme === 'nvfp4.w4a16') return located;
      const inputScale = at.require(['input_scale', 'input_global_scale'], ['f32'], scalar);
      return { ...located, inputScale, inputScaleIs: kindOfGlobalScale(inputScale) };
    }
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic': {
      const weight = at.require(['weight'], ['f8e4m3'], [[rows, columns]]);
      const inputScale = at.find(['input_scale']);
      const scale = at.require(
        ['weight_scale'],
        fp8ScaleTypes,
        inputScale === undefined && rows > 1 ? [...scalar, [rows], [rows, 1]] : scalar,
      );
      if (scale.shape[0] === rows && rows > 1) return { ...base, scheme: 'fp8.channel', weight, scale };
      if (scheme === 'fp8.tensor.dynamic') return { ...base, scheme, weight, scale };
      return { ...base, scheme, weight, scale, inputScale: at.require(['input_scale'], fp8ScaleTypes, scalar), inputScaleIs: 'factor' };
    }
    case 'fp8.channel': {
      const weight = at.require(['weight'], ['f8e4m3'], [[rows, columns]]);
      return { ...base, scheme, weight, scale: at.require(['weight_scale'], fp8ScaleTypes, [[rows, 1], [rows]]) };
    }
    case 'fp8.block128': {
      const weight = at.require(['weight'], ['f8e4m3'], [[rows, columns]]);
      const [n, k] = [Math.ceil(rows / 128), Math.ceil(columns / 128)];
      const scale = at.require(
        ['weight_scale_inv', 'weight_scale'],
        [...fp8ScaleTypes, 'f8e8m0'],
        [
          [n, k],
          [n, 1, k, 1],
        ],
      );
      return { ...base, scheme, weight, scale };
    }
    case 'mxfp4.w4a16': {
      const weight = at.require(['weight_packed', 'weight'], ['u8'], [[rows, columns / 2]]);
      return { ...base, scheme, weight, scale: at.require(['weight_scale'], ['u8', 'f8e8m0'], [[rows, columns / 32]]) };
    }
    default:
      throw new MoeError(
        'MOE_UNSUPPORTED_QUANTIZATION',
        `${module}: the core cannot read weights of the scheme "${String(scheme)}"; only the plugin that defines it can.`,
        { module, scheme },
      );
  }
}

/** All tensors of a module, for reading them in one go. */
export function tensorsOf(located: ModuleTensors): readonly TensorInfo[] {
  return [located.weight, located.scale, located.globalScale, located.inputScale].filter((info) => info !== undefined);
}

/** Whether a module is stored as a plain matrix, whatever its configuration says. */
export function isStoredPlain(checkpoint: Checkpoint, module: string): boolean {
  const weight = checkpoint.find(`${module}.weight`);
  return (
    weight !== undefined &&
    (weight.dtype === 'bf16' || weight.dtype === 'f16') &&
    !checkpoint.has(`${module}.weight_scale`) &&
    !checkpoint.has(`${module}.weight_scale_inv`)
  );
}

/**
 * The error for a tensor that is not what it should be.
 *
 * @param info - the tensor, or its name where there is none.
 */
export function tensorError(info: TensorInfo | string, reason: string, details: Readonly<Record<string, unknown>> = {}): MoeError {
  if (typeof info === 'string') return new MoeError('MOE_CHECKPOINT_TENSOR', `tensor ${info}: ${reason}.`, { tensor: info, ...details });
  return new MoeError('MOE_CHECKPOINT_TENSOR', `${info.file}: tensor ${info.name}: ${reason}.`, {
    file: info.file,
    tensor: info.name,
    offset: info.begin,
    ...details,
  });
}

/**
 * Checks a tensor's element type and shape.
 *
 * @throws {MoeError} MOE_CHECKPOINT_TENSOR
 */
export function checkTensor(
  info: TensorInfo,
  dtypes: readonly DType[],
  shapes: readonly (readonly number[])[],
  because: string,
): TensorInfo {
  if (!dtypes.includes(info.dtype)) {
    const expected = dtypes.map(safetensorsDtypeName).join(' or ');
    throw tensorError(info, `expected ${expected} ${because}, got ${safetensorsDtypeName(info.dtype)}`, {
      expected: dtypes,
      actual: info.dtype,
    });
  }
  if (!shapes.some((shape) => isSameShape(shape, info.shape))) {
    const expected = shapes.map(formatShape).join(' or ');
    throw tensorError(info, `expected shape ${expected} ${because}, got ${formatShape(info.shape)}`, {
      expected: shapes,
      actual: info.shape,
    });
  }
  return info;
}

function isSameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

function formatShape(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

function kindOfGlobalScale(info: TensorInfo): 'factor' | 'divisor' {
  return info.name.endsWith('_global_scale') ? 'divisor' : 'factor';
}

function checkGroupColumns(module: string, scheme: SchemeKey | undefined, columns: number): void {
  const groupColumns = scheme === undefined ? 1 : (schemeInfo(scheme)?.groupColumns ?? 1);
  if (columns % groupColumns !== 0) {
    throw tensorError(
      `${module}.weight`,
      `its ${String(columns)} columns do not divide into groups of ${String(groupColumns)} as ${String(scheme)} has them`,
      {
        expected: groupColumns,
        actual: columns,
      },
    );
  }
}

/** Finds tensors of one module by suffix. */
class Locator {
  readonly #checkpoint: Checkpoint;
  readonly #module: string;
  readonly #scheme: SchemeKey | undefined;

  constructor(checkpoint: Checkpoint, module: string, scheme: SchemeKey | undefined) {
    this.#checkpoint = checkpoint;
    this.#module = module;
    this.#scheme = scheme;
  }

  find(suffixes: readonly string[]): TensorInfo | undefined {
    for (const suffix of suffixes) {
      const info = this.#checkpoint.find(`${this.#module}.${suffix}`);
      if (info !== undefined) return info;
    }
    return undefined;
  }

  require(suffixes: readonly string[], dtypes: readonly DType[], shapes: readonly (readonly number[])[]): TensorInfo {
    const info = this.find(suffixes);
    if (info !== undefined) return checkTensor(info, dtypes, shapes, this.#because());
    const plain = this.find(['weight']);
    const stored =
      plain === undefined ? '' : `; ${this.#module}.weight is ${safetensorsDtypeName(plain.dtype)} ${formatShape(plain.shape)}`;
    throw tensorError(`${this.#module}.${suffixes.join('|')}`, `it is missing ${this.#because()}${stored}`, {
      expected: dtypes,
      actual: null,
    });
  }

  /** A weight that is not quantized; one that is, is a contradiction between configuration and file. */
  plainWeight(shape: readonly number[]): TensorInfo {
    const info = this.find(['weight', 'weight_packed', 'qweight']);
    if (info === undefined) throw tensorError(`${this.#module}.weight`, 'it is missing', { expected: shape, actual: null });
    return checkTensor(info, ['bf16', 'f16'], [shape], this.#because());
  }

  #because(): string {
    return this.#scheme === undefined
      ? 'because the configuration does not list the module as quantized'
      : `because the configuration makes the module ${this.#scheme}`;
  }
}
