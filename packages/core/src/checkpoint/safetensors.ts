import type { DType } from '../dtype.js';
import { bitsOf } from '../dtype.js';
import { MoeError, messageOf } from '../errors.js';
import { isRecord, scanJson } from './json-scan.js';
import type { ShardFile } from './shard-file.js';

/** Where a tensor lies. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Name of the file within the model folder. */
  readonly file: string;
  /** Offsets of the first byte and of the byte after the last, from the start of the file. */
  readonly begin: number;
  readonly end: number;
}

/** Element types by their names in safetensors files. */
const dtypes: Readonly<Record<string, DType>> = {
  F64: 'f64',
  F32: 'f32',
  F16: 'f16',
  BF16: 'bf16',
  F8_E4M3: 'f8e4m3',
  F8_E5M2: 'f8e5m2',
  F8_E8M0: 'f8e8m0',
  I64: 'i64',
  I32: 'i32',
  I16: 'i16',
  I8: 'i8',
  U64: 'u64',
  U32: 'u32',
  U16: 'u16',
  U8: 'u8',
  BOOL: 'bool',
  C64: 'c64',
  F6_E2M3: 'f6e2m3',
  F6_E3M2: 'f6e3m2',
  F4: 'f4e2m1',
};
const dtypeByName = new Map(Object.entries(dtypes));
const nameByDtype = new Map(Object.entries(dtypes).map(([name, dtype]) => [dtype, name]));

/** The name that safetensors files use: `bf16` → `BF16`. Messages speak the file's language. */
export function safetensorsDtypeName(dtype: DType): string {
  return nameByDtype.get(dtype) ?? dtype;
}

/** Limit of the safetensors reference implementation. */
const maxHeaderBytes = 100_000_000;
const maxTensors = 1_000_000;
const maxNameLength = 1024;
const maxDimensions = 16;
const lengthBytes = 8;

/** Object of tensors, tensor, shape or offsets: the format has no deeper nesting. */
const headerDepth = 3;
const membersPerTensor = 3;

/**
 * Reads and checks the header of one safetensors file. As strict as the reference implementation or stricter: nothing is allocated from
 * declared sizes, tensors cover the data exactly once, and no name occurs twice.
 *
 * @returns tensors in the order of the header.
 * @throws {MoeError} MOE_CHECKPOINT_HEADER naming the file, and the tensor where one is to blame.
 */
export async function readSafetensorsHeader(file: ShardFile): Promise<TensorInfo[]> {
  const fail = headerError(file.name);
  if (file.size < lengthBytes) {
    throw fail(`it has ${String(file.size)} bytes, and a safetensors file begins with a length of ${String(lengthBytes)} bytes`, {
      actual: file.size,
    });
  }
  const length = new DataView((await file.read(0, lengthBytes)).buffer).getBigUint64(0, true);
  if (length > BigInt(maxHeaderBytes)) {
    throw fail(
      `its header claims ${String(length)} bytes; at most ${String(maxHeaderBytes)} are allowed. It is probably not a safetensors file`,
      {
        offset: 0,
        actual: String(length),
        expected: maxHeaderBytes,
      },
    );
  }
  const headerBytes = Number(length);
  if (headerBytes > file.size - lengthBytes) {
    throw fail(
      `its header claims ${String(headerBytes)} bytes, but only ${String(file.size - lengthBytes)} follow. The file is truncated`,
      {
        offset: 0,
        actual: file.size - lengthBytes,
        expected: headerBytes,
      },
    );
  }
  return parseSafetensorsHeader(await file.read(lengthBytes, headerBytes), file.name, file.size - lengthBytes - headerBytes);
}

/**
 * Parses and checks a header.
 *
 * @param bytes - the JSON text alone.
 * @param file - name for messages and {@link TensorInfo.file}.
 * @param dataBytes - how many bytes follow the header in the file.
 * @throws {MoeError} MOE_CHECKPOINT_HEADER
 */
export function parseSafetensorsHeader(bytes: Uint8Array, file: string, dataBytes: number): TensorInfo[] {
  const fail = headerError(file);
  const header = parseJson(bytes, fail);
  const dataStart = lengthBytes + bytes.length;
  const tensors: TensorInfo[] = [];
  for (const name in header) {
    if (name === '__metadata__') checkMetadata(header[name], fail);
    else tensors.push(parseTensor(name, header[name], file, dataStart, fail));
    if (tensors.length > maxTensors) throw fail(`its header lists more than ${String(maxTensors)} tensors`, { expected: maxTensors });
  }
  checkCoverage(tensors, dataStart, dataStart + dataBytes, fail);
  return tensors;
}

type Fail = (reason: string, details?: Readonly<Record<string, unknown>>, cause?: unknown) => MoeError;

function headerError(file: string): Fail {
  return (reason, details = {}, cause) =>
    new MoeError('MOE_CHECKPOINT_HEADER', `${file}: ${reason}.`, { file, ...details }, cause === undefined ? {} : { cause });
}

function parseJson(bytes: Uint8Array, fail: Fail): Record<string, unknown> {
  if (bytes[0] !== 0x7b) throw fail('its header does not begin with "{"', { offset: lengthBytes });
  const scan = scanJson(bytes, headerDepth);
  if (scan.tooDeepAt >= 0) {
    throw fail(`its header nests deeper than ${String(headerDepth)} levels at byte ${String(lengthBytes + scan.tooDeepAt)}`, {
      offset: lengthBytes + scan.tooDeepAt,
    });
  }
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw fail('its header is not valid UTF-8', {}, cause);
  }
  let header: unknown;
  try {
    header = JSON.parse(text);
  } catch (cause) {
    throw fail(`its header is not valid JSON (${messageOf(cause)})`, {}, cause);
  }
  if (!isRecord(header)) throw fail('its header is not a JSON object');
  // Valid JSON: what is left outside strings is a sign, a fraction, an exponent, or true, false and null, and the format has none of them.
  if (scan.firstOtherLiteral >= 0) {
    throw fail(
      `its header holds something other than strings and non-negative integers at byte ${String(lengthBytes + scan.firstOtherLiteral)}` +
        describeOwner(header),
      { offset: lengthBytes + scan.firstOtherLiteral },
    );
  }
  checkDuplicates(header, scan.membersAtDepth, fail);
  return header;
}

/** Names the first tensor with a value of a wrong kind, so that a person need not count bytes. */
function describeOwner(header: Record<string, unknown>): string {
  for (const name in header) {
    const entry = header[name];
    const text = isRecord(entry) ? JSON.stringify([entry.shape, entry.data_offsets]) : JSON.stringify(entry);
    if (name !== '__metadata__' && /[-.a-z]/i.test(text)) return `, in tensor ${name}`;
  }
  return '';
}

function checkDuplicates(header: Record<string, unknown>, membersAtDepth: readonly number[], fail: Fail): void {
  const names = Object.keys(header);
  let members = 0;
  for (const name of names) {
    const entry = header[name];
    if (isRecord(entry)) members += Object.keys(entry).length;
  }
  if (membersAtDepth[1] !== names.length) {
    throw fail(`its header names a tensor more than once: ${String(membersAtDepth[1])} entries, ${String(names.length)} different names`);
  }
  if (membersAtDepth[2] !== members) throw fail('its header has an entry in which a field occurs more than once');
}

function checkMetadata(metadata: unknown, fail: Fail): void {
  if (!isRecord(metadata)) throw fail('its __metadata__ is not a JSON object');
  for (const key in metadata) {
    if (typeof metadata[key] !== 'string') throw fail(`its __metadata__ field ${JSON.stringify(key)} is not a string`, { field: key });
  }
}

const loneSurrogate = /[\ud800-\udfff]/u;

function parseTensor(name: string, entry: unknown, file: string, dataStart: number, fail: Fail): TensorInfo {
  if (name.length > maxNameLength || loneSurrogate.test(name)) {
    throw fail(
      `the name of tensor ${JSON.stringify(name.slice(0, 80))} is longer than ${String(maxNameLength)} characters or not well-formed`,
      {
        tensor: name.slice(0, 80),
      },
    );
  }
  const failTensor = (reason: string, details: Readonly<Record<string, unknown>> = {}): MoeError =>
    fail(`tensor ${name}: ${reason}`, { tensor: name, ...details });
  if (!isRecord(entry)) throw failTensor('its entry is not a JSON object');
  const { dtype: dtypeName, shape, data_offsets: offsets } = entry;
  if (Object.keys(entry).length !== membersPerTensor || dtypeName === undefined || shape === undefined || offsets === undefined) {
    throw failTensor(
      `expected exactly the fields dtype, shape and data_offsets, got ${Object.keys(entry).slice(0, 8).join(', ') || 'none'}`,
    );
  }
  const dtype = typeof dtypeName === 'string' ? dtypeByName.get(dtypeName) : undefined;
  if (dtype === undefined) {
    throw failTensor(`unknown dtype ${JSON.stringify(dtypeName)}; known are ${[...dtypeByName.keys()].join(', ')}`, { actual: dtypeName });
  }
  if (!isSizeList(shape) || shape.length > maxDimensions) {
    throw failTensor(`its shape must be a list of at most ${String(maxDimensions)} non-negative integers`, { actual: shape });
  }
  if (!isSizeList(offsets) || offsets.length !== 2)
    throw failTensor('its data_offsets must be two non-negative integers', { actual: offsets });
  const [begin, end] = offsets as [number, number];
  let numElements = 1;
  for (const size of shape) numElements = Number.isSafeInteger(numElements) ? numElements * size : NaN;
  const bits = numElements * bitsOf(dtype);
  if (!Number.isSafeInteger(bits)) throw failTensor(`its shape [${shape.join(', ')}] overflows`, { actual: shape });
  if (bits % 8 !== 0) {
    throw failTensor(`its shape [${shape.join(', ')}] of ${safetensorsDtypeName(dtype)} does not fill whole bytes`, { actual: shape });
  }
  if (end < begin || end - begin !== bits / 8) {
    throw failTensor(
      `its data_offsets [${String(begin)}, ${String(end)}] hold ${String(end - begin)} bytes, but ${safetensorsDtypeName(dtype)} [${shape.join(', ')}] needs ${String(bits / 8)}`,
      { offset: dataStart + begin, expected: bits / 8, actual: end - begin },
    );
  }
  return { name, dtype, shape, file, begin: dataStart + begin, end: dataStart + end };
}

function isSizeList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && (size as number) >= 0);
}

/** Every byte of the data belongs to exactly one tensor. */
function checkCoverage(tensors: readonly TensorInfo[], dataStart: number, fileEnd: number, fail: Fail): void {
  const ordered = [...tensors].sort((a, b) => a.begin - b.begin || a.end - b.end);
  let covered = dataStart;
  for (const { name, begin, end } of ordered) {
    if (begin !== covered) {
      const what = begin < covered ? 'overlaps the tensor before it' : `leaves a hole of ${String(begin - covered)} bytes before it`;
      throw fail(
        `tensor ${name}: it begins at data offset ${String(begin - dataStart)} and ${what} (expected ${String(covered - dataStart)})`,
        {
          tensor: name,
          offset: begin,
          expected: covered,
          actual: begin,
        },
      );
    }
    if (end > fileEnd) {
      throw fail(
        `tensor ${name}: it ends at data offset ${String(end - dataStart)}, but the file holds ${String(fileEnd - dataStart)} bytes of data. The file is truncated or its header lies`,
        { tensor: name, offset: begin, expected: end, actual: fileEnd },
      );
    }
    covered = end;
  }
  if (covered !== fileEnd) {
    throw fail(`its tensors cover ${String(covered - dataStart)} bytes of data, but ${String(fileEnd - dataStart)} follow the header`, {
      offset: covered,
      expected: covered - dataStart,
      actual: fileEnd - dataStart,
    });
  }
}
