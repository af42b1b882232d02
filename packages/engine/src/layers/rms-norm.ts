import type { BufferRef, RowCount } from '../device/commands.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** Root mean square layer normalization (Zhang and Sennrich 2019). */
export class RmsNorm {
  readonly #weight: BufferRef;
  readonly #width: number;
  readonly #eps: number;

  constructor(weight: BufferRef, width: number, eps: number) {
    this.#weight = weight;
    this.#width = width;
    this.#eps = eps;
  }

  static async load(weights: WeightSource, module: string, width: number, eps: number): Promise<RmsNorm> {
    return new RmsNorm(await weights.vector(`${module}.weight`, width), width, eps);
  }

  /** Both [rows, width] f32. */
  encode(encoder: StepEncoder, input: BufferRef, output: BufferRef, rows: RowCount = 'tokens'): void {
    encoder.append({ op: 'rmsNorm', rows, width: this.#width, eps: this.#eps, input, weight: this.#weight, output });
  }
}
