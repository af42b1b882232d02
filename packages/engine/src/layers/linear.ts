import type { BufferRef, RowCount } from '../device/commands.js';
import type { StepEncoder } from './step-encoder.js';
import type { BoundLinear, WeightSource } from './weights.js';

/** y = x W^T, by whatever kernel the plan bound. */
export class Linear {
  readonly #bound: BoundLinear;

  constructor(bound: BoundLinear) {
    this.#bound = bound;
  }

  /** @param modules - the modules of the checkpoint whose rows follow each other in the output; one, or a fusion. */
  static async load(weights: WeightSource, ...modules: readonly string[]): Promise<Linear> {
    return new Linear(await weights.linear(modules));
  }

  get outFeatures(): number {
    return this.#bound.spec.outFeatures;
  }

  /**
   * @param input - [rows, inFeatures] f32
   * @param output - [rows, outFeatures] f32, overwritten, or added to when `accumulate`.
   */
  encode(encoder: StepEncoder, input: BufferRef, output: BufferRef, options: { rows?: RowCount; accumulate?: boolean } = {}): void {
    const { spec, kernels } = this.#bound;
    const { name, inFeatures, outFeatures } = spec;
    const { rows = 'tokens', accumulate = false } = options;
    const kernel = encoder.choose(kernels, rows);
    encoder.append({ op: 'linear', rows, name, kernel, inFeatures, outFeatures, input, output, accumulate });
  }
}
