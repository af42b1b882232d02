import { join } from 'node:path';
import { fixtureFolders, readSafetensors, relativeL2, valuesOf } from '@moe-server/test-kit';
import type { ReferenceTensor } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { Arithmetic } from '../../src/arithmetic.js';
import type { ExpertMatrices } from '../../src/backend.js';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { activationFunction, referenceExpertsStages, referenceLinear } from '../../src/conformance/index.js';
import type { LinearModule, ReferenceExpertsStages } from '../../src/conformance/index.js';
import type { ExpertGroupSpec } from '../../src/layer-spec.js';
import { isMoeError } from '../../src/errors.js';

/** The stages of the fixtures round activation(gate, up) to bf16; inputs are bf16 already, or quantized as the scheme says. */
const arithmetics: Readonly<Record<'weight_only' | 'act_quant', Arithmetic>> = {
  weight_only: { input: { type: 'float', dtype: 'f32' }, weights: 'exact', accumulator: 'f64', intermediate: 'bf16', output: 'f32' },
  act_quant: { input: { type: 'as-scheme' }, weights: 'exact', accumulator: 'f64', intermediate: 'bf16', output: 'f32' },
};
/** test/fixtures/README.md: float32 accumulation of exact products. */
const stageTolerance = 1e-5;
const numTokens = 17;

for (const folder of fixtureFolders()) {
  describe(`the reference on ${folder.split('/').at(-1) ?? folder}`, () => {
    const tensors = readSafetensors(join(folder, 'reference.safetensors'));
    const names = [...tensors.keys()];
    let checkpoint: Checkpoint;
    before(async () => {
      checkpoint = await Checkpoint.open(folder);
    });
    after(() => checkpoint.close());

    for (const [layer, mode] of stagesOf(names, /^kernel\/(layer\.\d+)\/(weight_only|act_quant)\/y$/)) {
      it(`gives the stages of ${layer}'s experts, ${mode}`, async () => {
        const stored = (name: string): Float32Array | Int32Array => valuesOf(required(tensors, `kernel/${layer}/${name}`));
        const groups = describeModel(checkpoint).groups.filter(
          ({ role, layerIndex }) => role === 'target' && layerIndex === Number(layer.split('.')[1]),
        );
        const call = { numTokens, hiddenStates: stored('x') as Float32Array, topkWeights: stored('topk_weights') as Float32Array };
        const ids = stored('topk_ids') as Int32Array;
        const topK = ids.length / numTokens;
        const gateUp = new Float64Array(stored(`${mode}/gate_up`).length);
        const h = new Float64Array(gateUp.length / 2);
        const y = new Float64Array(stored(`${mode}/y`).length);
        for (const group of groups) {
          const experts = await readExperts(checkpoint, group);
          const topkSlots = ids.map((id) => group.experts.indexOf(id));
          const stages = referenceExpertsStages({ ...call, topK, topkSlots, group, arithmetic: arithmetics[mode], experts });
          addInto(gateUp, joinGateUp(stages, group));
          addInto(h, stages.activation);
          addInto(
            y,
            downFromRecorded(group, experts, stored(`${mode}/h`) as Float32Array, { ...call, topK, topkSlots }, arithmetics[mode]),
          );
        }
        expect(relativeL2(gateUp, stored(`${mode}/gate_up`))).to.be.at.most(stageTolerance);
        // A few in ten thousand values lie so close to a boundary of bf16 that they fall on the other side, 2^-8 away.
        expect(relativeL2(h, stored(`${mode}/h`))).to.be.at.most(5e-4);
        expect(relativeL2(y, stored(`${mode}/y`))).to.be.at.most(stageTolerance);
      });
    }

    for (const [name, mode] of stagesOf(names, /^kernel\/linear\/(.+)\/(weight_only|act_quant)\/y$/)) {
      it(`gives the output of ${name}, ${mode}`, async () => {
        // The fixtures leave out the prefix that text models have inside multimodal checkpoints.
        const isNamed = (module: { readonly name: string }): boolean => module.name.replace('model.language_model.', 'model.') === name;
        const linear = describeModel(checkpoint).linears.find(({ modules }) => modules.some(isNamed));
        if (linear === undefined) throw new Error(`no linear holds ${name}`);
        const index = linear.modules.findIndex(isNamed);
        const module: LinearModule = await openLinearWeights(checkpoint, linear).module(index);
        const input = valuesOf(required(tensors, `kernel/linear/${name}/x`)) as Float32Array;
        const { rows, columns } = module.matrix;
        const output = referenceLinear({
          numTokens,
          input,
          linear: { inFeatures: columns, outFeatures: rows },
          arithmetic: arithmetics[mode],
          modules: [module],
        });
        expect(relativeL2(output, valuesOf(required(tensors, `kernel/linear/${name}/${mode}/y`)))).to.be.at.most(stageTolerance);
      });
    }
  });
}

/** Pairs of what two groups of the pattern capture, for every name that matches. */
function stagesOf(names: readonly string[], pattern: RegExp): [string, 'weight_only' | 'act_quant'][] {
  return names.flatMap((name) => {
    const match = pattern.exec(name);
    return match === null
      ? []
      : [[match[1] ?? '', match[2] === 'act_quant' ? 'act_quant' : 'weight_only'] as [string, 'weight_only' | 'act_quant']];
  });
}

function required(tensors: ReadonlyMap<string, ReferenceTensor>, name: string): ReferenceTensor {
  const tensor = tensors.get(name);
  if (tensor === undefined) throw new Error(`reference.safetensors has no ${name}`);
  return tensor;
}

async function readExperts(checkpoint: Checkpoint, group: ExpertGroupSpec): Promise<ExpertMatrices[]> {
  const weights = openExpertWeights(checkpoint, group);
  return Promise.all(group.experts.map((_, slot) => weights.expert(slot)));
}

/** [numTokens, topK, 2I] as the fixtures have it: gate then up, or alternating for gpt-oss. */
function joinGateUp({ gate, up }: ReferenceExpertsStages, { moeIntermediateSize: width, activation }: ExpertGroupSpec): Float64Array {
  const joined = new Float64Array(2 * gate.length);
  for (let i = 0; i < gate.length; i++) {
    const row = Math.floor(i / width);
    const column = i % width;
    const [gateAt, upAt] = activation.type === 'swiglu' ? [2 * column, 2 * column + 1] : [column, width + column];
    joined[2 * width * row + gateAt] = gate[i] ?? NaN;
    joined[2 * width * row + upAt] = up[i] ?? NaN;
  }
  return joined;
}

/** The second half of the layer by itself, from the recorded h, so that a value of h that rounds the other way does not count twice. */
function downFromRecorded(
  group: ExpertGroupSpec,
  experts: readonly ExpertMatrices[],
  h: Float32Array,
  { topK, topkSlots, topkWeights }: { readonly topK: number; readonly topkSlots: Int32Array; readonly topkWeights: Float32Array },
  arithmetic: Arithmetic,
): Float64Array {
  const { hiddenSize, moeIntermediateSize: width } = group;
  const y = new Float64Array(numTokens * hiddenSize);
  topkSlots.forEach((slot, choice) => {
    const expert = experts[slot];
    if (expert === undefined) return;
    const rows = referenceLinear({
      numTokens: 1,
      input: h.subarray(choice * width, (choice + 1) * width),
      linear: { inFeatures: width, outFeatures: hiddenSize },
      arithmetic,
      modules: [{ matrix: expert.down, bias: expert.bias?.down }],
    });
    const start = Math.floor(choice / topK) * hiddenSize;
    rows.forEach((value, i) => {
      y[start + i] = (y[start + i] ?? 0) + (topkWeights[choice] ?? 0) * value;
    });
  });
  return y;
}

function addInto(sum: Float64Array, part: ArrayLike<number>): void {
  for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] ?? 0) + (part[i] ?? 0);
}

describe('activationFunction', () => {
  it('computes silu(gate) * up', () => {
    const silu = activationFunction({ type: 'silu' }, 'layer');
    expect(silu(1, 2)).to.be.closeTo(2 / (1 + Math.exp(-1)), 1e-15);
    expect(silu(-1000, 3)).to.be.closeTo(0, 1e-300);
  });

  it('clamps gate from above and up on both sides in swiglu', () => {
    const swiglu = activationFunction({ type: 'swiglu', alpha: 1.702, limit: 7 }, 'layer');
    expect(swiglu(100, 100)).to.equal(swiglu(7, 7));
    expect(swiglu(-20, -100)).to.equal(swiglu(-20, -7));
    expect(swiglu(1, 0.5)).to.be.closeTo(1.5 / (1 + Math.exp(-1.702)), 1e-15);
  });

  it('refuses an activation that nobody defined, naming layer and activation', () => {
    try {
      activationFunction({ type: 'other', name: 'gelu' }, 'model.layers.3.mlp.experts');
      expect.fail('it did not throw');
    } catch (error) {
      if (!isMoeError(error)) throw error;
      expect(error.code).to.equal('MOE_UNSUPPORTED_LAYERS');
      expect(error.message).to.include('model.layers.3.mlp.experts').and.include('gelu');
    }
  });
});
