import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { ExpertGroupSpec, LinearSpec, ModelDescription } from '@moe-server/core';
import { Checkpoint, describeModel, openExpertWeights, openLinearWeights } from '@moe-server/core';
import { fixtureFolders, readSafetensors, relativeL2, valuesOf } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { CpuScheme, InstructionSet } from '../src/index.js';
import { expertRules, linearRules } from '../src/index.js';
import {
  deviceOf,
  instructionSets,
  RunnableLinearBackend,
  RunnableMoeBackend,
  quantizedSchemes,
  ruleOf,
  runExperts,
  runLinear,
} from './device.js';

type Mode = 'weight_only' | 'act_quant';

/** The references name modules as the text model alone does; vision checkpoints put it one level deeper. */
function nameInReference(module: { readonly name: string }): string {
  return module.name.replace('model.language_model.', 'model.');
}

/** The rule that computes a mode: inputs as they are, or quantized as the scheme says. */
function ruleId(scheme: string, mode: Mode, isa: InstructionSet): string {
  const family = scheme.split('.')[0] ?? scheme;
  if (!quantizedSchemes.some((one) => one === scheme)) return `${family}${scheme === 'nvfp4.w4a16' ? '-w4a16' : ''}-${isa}`;
  return `${family}-${mode === 'act_quant' ? 'same' : 'wider'}-${isa}`;
}

/** The sum of a layer's expert groups on the recorded inputs. */
async function expertOutput(
  checkpoint: Checkpoint,
  groups: readonly ExpertGroupSpec[],
  mode: Mode,
  isa: InstructionSet,
  inputs: ReturnType<typeof stageInputs>,
): Promise<Float32Array> {
  const backend = new RunnableMoeBackend();
  const device = deviceOf(isa);
  const { numTokens, topK, rows, ids, topkWeights } = inputs;
  const output = new Float32Array(rows.length);
  for (const [index, group] of groups.entries()) {
    const rule = ruleOf(expertRules, ruleId(group.schemes.w13, mode, isa));
    const packed = await backend.pack(group, rule, openExpertWeights(checkpoint, group), { device });
    const kernel = await backend.createKernel(group, rule, packed, { device, maxNumTokens: numTokens });
    const topkSlots = Int32Array.from(ids, (id) => group.experts.indexOf(id));
    runExperts(kernel, { numTokens, topK, hiddenStates: rows, topkSlots, topkWeights, output, accumulate: index > 0 });
    kernel.dispose();
    packed.dispose();
  }
  return output;
}

function stageInputs(
  tensors: ReturnType<typeof readSafetensors>,
  layer: string,
): { numTokens: number; topK: number; rows: Float32Array; ids: Int32Array; topkWeights: Float32Array } {
  const tensor = (name: string): { shape: readonly number[]; values: Float32Array | Int32Array } => {
    const found = tensors.get(`kernel/layer.${layer}/${name}`);
    if (found === undefined) throw new RangeError(`no tensor ${name}`);
    return { shape: found.shape, values: valuesOf(found) };
  };
  const ids = tensor('topk_ids');
  return {
    numTokens: ids.shape[0] ?? 0,
    topK: ids.shape[1] ?? 0,
    rows: Float32Array.from(tensor('x').values),
    ids: Int32Array.from(ids.values),
    topkWeights: Float32Array.from(tensor('topk_weights').values),
  };
}

/** The recorded output of one module, taken out of the fused linear that holds it. */
async function moduleOutput(
  checkpoint: Checkpoint,
  linear: LinearSpec,
  moduleName: string,
  mode: Mode,
  isa: InstructionSet,
  rows: Float32Array,
): Promise<Float32Array> {
  const backend = new RunnableLinearBackend();
  const device = deviceOf(isa);
  const rule = ruleOf(linearRules, ruleId(linear.scheme, mode, isa));
  const packed = await backend.pack(linear, rule, openLinearWeights(checkpoint, linear), { device });
  const numTokens = rows.length / linear.inFeatures;
  const kernel = await backend.createKernel(linear, rule, packed, { device, maxNumTokens: numTokens });
  const output = new Float32Array(numTokens * linear.outFeatures);
  runLinear(kernel, { numTokens, input: rows, output, accumulate: false });
  kernel.dispose();
  packed.dispose();
  const index = linear.modules.findIndex((module) => nameInReference(module) === moduleName);
  const begin = linear.modules.slice(0, index).reduce((sum, { outFeatures }) => sum + outFeatures, 0);
  const width = linear.modules[index]?.outFeatures ?? 0;
  return Float32Array.from(
    { length: numTokens * width },
    (_, i) => output[Math.floor(i / width) * linear.outFeatures + begin + (i % width)] ?? NaN,
  );
}

interface Reference {
  readonly kernel: { readonly moe: Readonly<Record<string, unknown>>; readonly linear: Readonly<Record<string, string>> };
  /** Shapes by name: which stages were recorded. */
  readonly reference_tensors: Readonly<Record<string, unknown>>;
}

describe('stages of the reference checkpoints', () => {
  for (const folder of fixtureFolders()) {
    const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as Reference;
    const recorded = (name: string): boolean => name in reference.reference_tensors;
    describe(basename(folder), () => {
      let checkpoint: Checkpoint;
      let model: ModelDescription;
      let tensors: ReturnType<typeof readSafetensors>;
      const values = (name: string): Float32Array => {
        const tensor = tensors.get(name);
        if (tensor === undefined) throw new RangeError(`no tensor ${name}`);
        return Float32Array.from(valuesOf(tensor));
      };
      before(async () => {
        checkpoint = await Checkpoint.open(folder);
        model = describeModel(checkpoint);
        tensors = readSafetensors(join(folder, 'reference.safetensors'));
      });
      after(async () => {
        await checkpoint.close();
      });
      for (const mode of ['weight_only', 'act_quant'] as const) {
        for (const isa of instructionSets()) {
          for (const layer of Object.keys(reference.kernel.moe)) {
            const y = `kernel/layer.${layer}/${mode}/y`;
            if (!recorded(y)) continue;
            it(`computes the experts of layer ${layer}, ${mode}, ${isa}`, async () => {
              const groups = model.groups.filter(({ layerIndex, role }) => role === 'target' && layerIndex === Number(layer));
              const output = await expertOutput(checkpoint, groups, mode, isa, stageInputs(tensors, layer));
              // The recorded intermediate is rounded to bf16. Rules with float32 inputs keep it, the others may round a value beside a boundary
              // to the other side; quantized again it is the same code all the same.
              expect(relativeL2(output, values(y))).to.be.below(mode === 'act_quant' ? 1e-5 : 0.006);
            });
          }
          for (const name of Object.keys(reference.kernel.linear)) {
            const y = `kernel/linear/${name}/${mode}/y`;
            if (!recorded(y)) continue;
            it(`computes ${name}, ${mode}, ${isa}`, async () => {
              const linear = model.linears.find(({ modules }) => modules.some((module) => nameInReference(module) === name));
              if (linear === undefined) throw new RangeError(`the model has no linear ${name}`);
              // Inputs are recorded as bf16, so nothing is rounded here but sums.
              const output = await moduleOutput(checkpoint, linear, name, mode, isa, values(`kernel/linear/${name}/x`));
              expect(relativeL2(output, values(y))).to.be.below(1e-5);
            });
          }
        }
      }
    });
  }
});

/** Keeps the helper's list and the rules' in step. */
describe('schemes with two arithmetics', () => {
  it('have a rule for each', () => {
    const wider = expertRules.filter(({ id }) => id.includes('-wider-')).flatMap(({ schemes }) => schemes);
    expect(new Set<CpuScheme>(wider)).to.deep.equal(new Set(quantizedSchemes));
  });
});
