import { bf16ToFloat32 } from '../quant/bf16.js';
import { findInvalidE4m3Scale } from '../quant/e4m3.js';
import { e8m0Values } from '../quant/e8m0.js';
import { f16ToFloat32 } from '../quant/f16.js';
import type { SchemeKey, SchemeRegistry } from '../quant/quant-scheme.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { Checkpoint } from './checkpoint.js';
import { checkFiniteWeights } from './finite-weights.js';
import type { ModuleTensors } from './module-tensors.js';
import { tensorError, tensorsOf } from './module-tensors.js';
import type { ReadBuffer } from './read-buffer.js';
import type { TensorInfo } from './safetensors.js';

type Bytes = Uint8Array<ArrayBuffer>;

/**
 * Reads located modules, their tensors in as few system calls as their places allow.
 *
 * @param into - memory to read into; left out = memory of the caller's own.
 * @throws {MoeError} MOE_CHECKPOINT_READ; MOE_CHECKPOINT_TENSOR for weights that are NaN or infinite, and for scales that are NaN, infinite, zero
 *   or negative, naming tensor and index.
 */
export async function readMatrices(
  checkpoint: Checkpoint,
  modules: readonly ModuleTensors[],
  into?: ReadBuffer,
): Promise<SchemeRegistry[SchemeKey][]> {
  const names = modules.flatMap((module) => tensorsOf(module).map(({ name }) => name));
  const buffers = await checkpoint.readMany(names, into);
  const bytesOf = new Map(names.map((name, i) => [name, buffers[i] as Bytes]));
  return modules.map((module) => assemble(module, (info) => bytesOf.get(info.name)!));
}

/** locateModule lets no other scheme through. */
function assemble(module: ModuleTensors, bytesOf: (info: TensorInfo) => Bytes): SchemeRegistry[SchemeKey] {
  const { rows, columns, weight, scale, globalScale, inputScale } = module;
  const codes = bytesOf(weight);
  checkFiniteWeights(weight, codes);
  switch (module.scheme) {
    case 'bf16':
    case 'f16':
      return { [SCHEME]: module.scheme, rows, columns, values: uint16Of(codes) };
    case 'nvfp4.w4a4':
    case 'nvfp4.w4a16': {
      const input = inputScale === undefined ? undefined : readScalar(inputScale, bytesOf(inputScale));
      return {
        [SCHEME]: module.scheme,
        rows,
        columns,
        codes,
        blockScales: checkE4m3Scales(present(scale), bytesOf(present(scale))),
        globalScale: readScalar(present(globalScale), bytesOf(present(globalScale))),
        globalScaleIs: module.globalScaleIs ?? 'factor',
        inputScale: input !== undefined && module.inputScaleIs === 'divisor' ? Math.fround(1 / input) : input,
      };
    }
    case 'fp8.tensor.static':
    case 'fp8.tensor.dynamic':
      return {
        [SCHEME]: module.scheme,
        rows,
        columns,
        codes,
        scale: readScalar(present(scale), bytesOf(present(scale))),
        inputScale: inputScale === undefined ? undefined : readScalar(inputScale, bytesOf(inputScale)),
      };
    case 'fp8.channel':
      return { [SCHEME]: module.scheme, rows, columns, codes, rowScales: readScales(present(scale), bytesOf(present(scale))) };
    case 'fp8.block128':
      return { [SCHEME]: module.scheme, rows, columns, codes, blockScales: readScales(present(scale), bytesOf(present(scale))) };
    case 'mxfp4.w4a16':
      return { [SCHEME]: module.scheme, rows, columns, codes, blockScales: checkE8m0Scales(present(scale), bytesOf(present(scale))) };
    default:
      throw new TypeError(`a module was located with the scheme ${String(module.scheme)}, which the core cannot read`);
  }
}

/** locateModule gives every tensor that the scheme has. */
function present(info: TensorInfo | undefined): TensorInfo {
  if (info === undefined) throw new TypeError('a located module lacks a tensor of its scheme');
  return info;
}

/** One positive, finite value. */
export function readScalar(info: TensorInfo, bytes: Bytes): number {
  return readScales(info, bytes)[0]!;
}

/** Positive, finite values of an F32, BF16, F16 or E8M0 tensor. */
function readScales(info: TensorInfo, bytes: Bytes): Float32Array {
  const scales = toFloat32(info, bytes);
  for (let i = 0; i < scales.length; i++) {
    const value = scales[i]!;
    if (!(value > 0 && value < Infinity)) {
      throw tensorError(info, `element ${String(i)} is ${String(value)}; a scale must be positive and finite`, {
        index: i,
        actual: String(value),
      });
    }
  }
  return scales;
}

function toFloat32(info: TensorInfo, bytes: Bytes): Float32Array {
  switch (info.dtype) {
    case 'bf16':
      return bf16ToFloat32(uint16Of(bytes));
    case 'f16':
      return f16ToFloat32(uint16Of(bytes));
    case 'f8e8m0':
      return Float32Array.from(bytes, (byte) => e8m0Values[byte]!);
    default:
      return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  }
}

/** The same memory as elements of two bytes. */
export function uint16Of({ buffer, byteOffset, byteLength }: Bytes): Uint16Array {
  return new Uint16Array(buffer, byteOffset, byteLength / 2);
}

/** Zero is allowed here: a block of zeros may have it, and decodes to zeros. */
function checkE4m3Scales(info: TensorInfo, bytes: Bytes): Bytes {
  const index = findInvalidE4m3Scale(bytes);
  if (index < 0) return bytes;
  const byte = bytes[index]!;
  const what = (byte & 0x7f) === 0x7f ? 'NaN' : 'negative';
  throw tensorError(
    info,
    `element ${String(index)} is ${what} (byte 0x${byte.toString(16)}); a block scale must be a number that is not negative`,
    {
      index,
      actual: byte,
    },
  );
}

/** Byte 255 is NaN; every other one is a power of two. */
export function checkE8m0Scales(info: TensorInfo, bytes: Bytes, indexOfFirst = 0): Bytes {
  const index = bytes.indexOf(255);
  if (index < 0) return bytes;
  throw tensorError(info, `element ${String(indexOfFirst + index)} is NaN (byte 0xff); a block scale must be a number`, {
    index: indexOfFirst + index,
    actual: 255,
  });
}
