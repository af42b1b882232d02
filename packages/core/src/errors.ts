/**
 * Every error that a user can meet, by code. Families say who must act. A test keeps this table and docs/errors.md equal.
 */
export const errorCodes = {
  // the caller
  MOE_REQUEST_INVALID: 'request',
  MOE_REQUEST_UNSUPPORTED: 'request',
  MOE_REQUEST_CONTEXT_LENGTH: 'request',
  // later
  MOE_CAPACITY_QUEUE_FULL: 'capacity',
  MOE_CAPACITY_MEMORY: 'capacity',
  MOE_CAPACITY_NOT_READY: 'capacity',
  // no backend, no model, no scheme
  MOE_UNSUPPORTED_LAYERS: 'unsupported',
  MOE_UNSUPPORTED_ARCHITECTURE: 'unsupported',
  MOE_UNSUPPORTED_QUANTIZATION: 'unsupported',
  MOE_UNSUPPORTED_PARALLEL: 'unsupported',
  MOE_PLAN_MOVED: 'unsupported',
  // the model folder
  MOE_CHECKPOINT_NOT_FOUND: 'checkpoint',
  MOE_CHECKPOINT_CONFIG: 'checkpoint',
  MOE_CHECKPOINT_INDEX: 'checkpoint',
  MOE_CHECKPOINT_HEADER: 'checkpoint',
  MOE_CHECKPOINT_TENSOR: 'checkpoint',
  MOE_CHECKPOINT_READ: 'checkpoint',
  MOE_CHECKPOINT_TOKENIZER: 'checkpoint',
  MOE_CHECKPOINT_TEMPLATE: 'checkpoint',
  // a plugin
  MOE_PLUGIN_LOAD: 'plugin',
  MOE_PLUGIN_CONTRACT: 'plugin',
  MOE_PLUGIN_DUPLICATE: 'plugin',
  MOE_PLUGIN_RULE: 'plugin',
  MOE_PLUGIN_BRAND: 'plugin',
  MOE_PLUGIN_ADDON: 'plugin',
  // the device
  MOE_DEVICE_KERNEL: 'device',
  MOE_DEVICE_MEMORY: 'device',
  MOE_DEVICE_LOST: 'device',
  // the command line
  MOE_USAGE: 'usage',
  MOE_PLAN_FILE: 'usage',
  // us
  MOE_INTERNAL: 'internal',
} as const satisfies Record<string, ErrorFamily>;

export type ErrorFamily = 'request' | 'capacity' | 'unsupported' | 'checkpoint' | 'plugin' | 'device' | 'usage' | 'internal';
export type ErrorCode = keyof typeof errorCodes;

const MOE_ERROR = Symbol.for('moe.error');

/**
 * An error with data. Known by its code, not by its class: two copies of this package may meet in one process, and errors
 * cross process borders as JSON.
 */
export class MoeError extends Error {
  readonly code: ErrorCode;
  readonly family: ErrorFamily;
  /** Plain data: file, tensor, offset, field, refusals, … */
  readonly details: Readonly<Record<string, unknown>>;
  readonly [MOE_ERROR] = true;

  constructor(code: ErrorCode, message: string, details: Readonly<Record<string, unknown>> = {}, options?: { cause?: unknown }) {
    super(message, options);
    this.name = 'MoeError';
    this.code = code;
    this.family = errorCodes[code];
    this.details = details;
  }

  /** For IPC and logs; the way back is {@link MoeError.fromJSON}. */
  toJSON(): SerializedMoeError {
    return { code: this.code, message: this.message, details: this.details };
  }

  static fromJSON(value: SerializedMoeError): MoeError {
    return new MoeError(value.code in errorCodes ? value.code : 'MOE_INTERNAL', value.message, value.details);
  }
}

export interface SerializedMoeError {
  readonly code: ErrorCode;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/** True for every MoeError, also of another copy of this package. */
export function isMoeError(value: unknown): value is MoeError {
  return typeof value === 'object' && value !== null && MOE_ERROR in value;
}

/** The message of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}
