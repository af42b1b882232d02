import type { BufferRef } from '../device/commands.js';
import { Linear } from './linear.js';
import type { StepEncoder } from './step-encoder.js';
import type { WeightSource } from './weights.js';

/** down(silu(gate(x)) * up(x)), for layers without experts. */
export class DenseMlp {
  readonly #gateUpProj: Linear;
  readonly #downProj: Linear;

  private constructor(gateUpProj: Linear, downProj: Linear) {
    this.#gateUpProj = gateUpProj;
    this.#downProj = downProj;
  }

  static async load(weights: WeightSource, module: string): Promise<DenseMlp> {
    const gateUpProj = await Linear.load(weights, `${module}.gate_proj`, `${module}.up_proj`);
    return new DenseMlp(gateUpProj, await Linear.load(weights, `${module}.down_proj`));
  }

  /**
   * residual += mlp(input).
   *
   * @param input - [tokens, hiddenSize] f32
   * @param residual - [tokens, hiddenSize] f32
   */
  encode(encoder: StepEncoder, input: BufferRef, residual: BufferRef): void {
    const width = this.#gateUpProj.outFeatures / 2;
    const gateUp = encoder.buffer('gate and up', 'tokens', 2 * width);
    const activated = encoder.buffer('activated', 'tokens', width);
    this.#gateUpProj.encode(encoder, input, gateUp);
    encoder.append({ op: 'gatedActivation', rows: 'tokens', activation: { type: 'silu' }, width, input: gateUp, output: activated });
    this.#downProj.encode(encoder, activated, residual, { accumulate: true });
  }
}
