import { MoeError } from '@moe-server/core';
import type { BufferRef, RowCount } from '../commands.js';
import type { StepInputs, StepLimits } from '../step-inputs.js';

/** A command bound to its memory: called once per step, reads what changes from the step inputs. */
export type Operator = (inputs: StepInputs) => void;

/** Places of the counts in the header of the step inputs. */
const headerTokens = 0;
const headerSequences = 1;
const headerLogitRows = 2;

/**
 *
 */
export function numTokensOf(inputs: StepInputs): number {
  return inputs.header[headerTokens] ?? 0;
}

/**
 *
 */
export function numSequencesOf(inputs: StepInputs): number {
  return inputs.header[headerSequences] ?? 0;
}

/**
 *
 */
export function numRowsOf(inputs: StepInputs, rows: RowCount): number {
  return (rows === 'tokens' ? inputs.header[headerTokens] : inputs.header[headerLogitRows]) ?? 0;
}

/** The most rows that a step can bring. */
export function maxRowsOf(limits: StepLimits, rows: RowCount): number {
  return rows === 'tokens' ? limits.maxNumTokens : limits.maxLogitRows;
}

/** `length` elements at the start of `ref`, as float32. */
export function floatsOf(ref: BufferRef, length: number, what: string): Float32Array {
  checkLength(ref, 4 * length, what);
  return new Float32Array(ref.buffer, ref.byteOffset, length);
}

/**
 *
 */
export function intsOf(ref: BufferRef, length: number, what: string): Int32Array {
  checkLength(ref, 4 * length, what);
  return new Int32Array(ref.buffer, ref.byteOffset, length);
}

/** `length` bfloat16 bit patterns. */
export function halvesOf(ref: BufferRef, length: number, what: string): Uint16Array {
  checkLength(ref, 2 * length, what);
  return new Uint16Array(ref.buffer, ref.byteOffset, length);
}

/**
 *
 */
export function bytesOfRef(ref: BufferRef, length: number, what: string): Uint8Array {
  checkLength(ref, length, what);
  return new Uint8Array(ref.buffer, ref.byteOffset, length);
}

function checkLength(ref: BufferRef, byteLength: number, what: string): void {
  if (ref.byteLength >= byteLength && ref.byteOffset + byteLength <= ref.buffer.byteLength) return;
  throw new MoeError('MOE_INTERNAL', `${what} needs ${String(byteLength)} bytes, but its buffer has ${String(ref.byteLength)}.`, {
    expectedBytes: byteLength,
    actualBytes: ref.byteLength,
  });
}
