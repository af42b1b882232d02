import { basename, join } from 'node:path';
import type { ExpertGroupSpec, LayerPlan, LayerSpec, LinearSpec, NumericsChoice, PluginHost } from '@moe-server/core';
import {
  Checkpoint,
  describeModel,
  deviceProfile,
  openExpertWeights,
  openLinearWeights,
  planWith,
  prepareExperts,
  prepareLinear,
} from '@moe-server/core';
import { fixtureFolders, pocketDictionary, readSafetensors, relativeL2, valuesOf } from '@moe-server/test-kit';
import { expect } from 'chai';
import { loadPlugins } from 'moe-server';
import { continuations, evaluate, samples } from './evaluation.js';
import { RunningModel } from './running-model.js';
import { startServer } from './server-process.js';

const maxNumTokens = 17;

/** What is declared and what was recorded differ in the rounding of outputs to bf16 and nothing else: 2^-9 / sqrt(3), each. */
const tolerance = 0.0025;

const modes = [
  { mode: 'act_quant', numerics: 'same' },
  { mode: 'weight_only', numerics: 'wider' },
] as const;

describe('simulated kernels', function () {
  this.timeout(120_000);
  let host: PluginHost;
  before(async () => {
    ({ host } = await loadPlugins({ plugins: false }));
  });

  for (const folder of fixtureFolders()) {
    for (const deviceName of ['gb10', 'h100']) {
      const device = deviceProfile(deviceName);
      const planFor = (layer: LayerSpec, numerics: NumericsChoice): LayerPlan => {
        const numericsPolicy = { default: numerics };
        const { layers } = planWith(host, { layers: [layer], device, maxNumTokens, assumeBuilt: true, numerics: numericsPolicy });
        return layers[0]!;
      };
      const context = { device, maxNumTokens, simulate: true };

      it(`give the recorded outputs of ${basename(folder)} through the layouts that ${deviceName} binds`, async () => {
        const checkpoint = await Checkpoint.open(folder);
        const { groups, linears } = describeModel(checkpoint);
        const tensors = readSafetensors(join(folder, 'reference.safetensors'));
        const values = (name: string): Float32Array => Float32Array.from(valuesOf(tensors.get(name)!));
        let numCompared = 0;

        const expertsOutput = async (layer: string, parts: readonly ExpertGroupSpec[], numerics: NumericsChoice): Promise<Float32Array> => {
          const ids = values(`kernel/${layer}/topk_ids`);
          const hiddenStates = values(`kernel/${layer}/x`);
          const output = new Float32Array(hiddenStates.length);
          for (const [index, group] of parts.entries()) {
            const layerPlan = planFor(group, numerics);
            const prepared = await prepareExperts(host, layerPlan, group, openExpertWeights(checkpoint, group), context);
            const { entry } = prepared.kernel;
            if (entry.type !== 'js-experts') throw new TypeError(`a simulated kernel is a plain function, not ${entry.type}`);
            entry.run({
              numTokens: maxNumTokens,
              topK: ids.length / maxNumTokens,
              hiddenStates,
              topkSlots: Int32Array.from(ids, (id) => group.experts.indexOf(id)),
              topkWeights: values(`kernel/${layer}/topk_weights`),
              output,
              accumulate: index > 0,
            });
            prepared.dispose();
          }
          return output;
        };
        const linearOutput = async (name: string, linear: LinearSpec, numerics: NumericsChoice): Promise<Float32Array> => {
          const layerPlan = planFor(linear, numerics);
          const prepared = await prepareLinear(host, layerPlan, linear, openLinearWeights(checkpoint, linear), context);
          const { entry } = prepared.kernel;
          if (entry.type !== 'js-linear') throw new TypeError(`a simulated kernel is a plain function, not ${entry.type}`);
          const output = new Float32Array(maxNumTokens * linear.outFeatures);
          entry.run({ numTokens: maxNumTokens, input: values(`kernel/linear/${name}/x`), output, accumulate: false });
          prepared.dispose();
          return columnsOf(output, linear, name);
        };

        for (const { mode, numerics } of modes) {
          for (const [tensor] of tensors) {
            const layer = new RegExp(`^kernel/(layer\\.(\\d+))/${mode}/y$`).exec(tensor);
            if (layer?.[1] !== undefined) {
              const parts = groups.filter(({ role, layerIndex }) => role === 'target' && layerIndex === Number(layer[2]));
              // A device without the units for a scheme's inputs has no kernel of the class "same".
              if (!parts.every((group) => planFor(group, numerics).bindings.length > 0)) continue;
              expect(relativeL2(await expertsOutput(layer[1], parts, numerics), values(tensor)), tensor).to.be.below(tolerance);
              numCompared++;
            }
            const name = new RegExp(`^kernel/linear/(.+)/${mode}/y$`).exec(tensor)?.[1];
            const linear = linears.find(({ modules }) => modules.some((module) => nameInReference(module) === name));
            if (name === undefined || linear === undefined || planFor(linear, numerics).bindings.length === 0) continue;
            expect(relativeL2(await linearOutput(name, linear, numerics), values(tensor)), tensor).to.be.below(tolerance);
            numCompared++;
          }
        }
        await checkpoint.close();
        expect(numCompared).to.be.greaterThan(0);
      });
    }
  }
});

/** The references name modules as the text model alone does; vision checkpoints put it one level deeper. */
function nameInReference({ name }: { readonly name: string }): string {
  return name.replace('model.language_model.', 'model.');
}

/** One module's columns of a fused output. */
function columnsOf(output: Float32Array, { modules, outFeatures }: LinearSpec, name: string): Float32Array {
  const index = modules.findIndex((module) => nameInReference(module) === name);
  const begin = modules.slice(0, index).reduce((sum, module) => sum + module.outFeatures, 0);
  const width = modules[index]?.outFeatures ?? 0;
  return Float32Array.from(
    { length: maxNumTokens * width },
    (_, i) => output[Math.floor(i / width) * outFeatures + begin + (i % width)] ?? NaN,
  );
}

describe('pocket-dictionary on a simulated gb10', function () {
  this.timeout(3_600_000);
  let model: RunningModel;
  before(async () => {
    model = await RunningModel.open(pocketDictionary, { device: 'typescript', simulate: 'gb10', numerics: 'auto' });
  });
  after(() => {
    model.close();
  });

  it('binds NVFP4 experts to b12x and FP8 experts to cutlass, and says that neither is built', () => {
    const experts = model.plan.layers.filter(({ kind }) => kind === 'moe');
    const bound = new Set(
      experts.map(({ scheme, bindings: [binding] }) => `${scheme} ${String(binding?.backend)} ${String(binding?.built)}`),
    );
    expect([...bound].sort()).to.deep.equal(['fp8.tensor.static cutlass false', 'nvfp4.w4a4 b12x false']);
  });

  it('answers a question', async () => {
    const { prompt_ids: promptIds, weight_only: expected } = continuations.find(({ prompt }) => prompt.includes('serendipity'))!;
    const { tokenIds } = await model.generate(promptIds, expected.ids.length + 1, model.config.eosTokenIds);
    expect(tokenIds.slice(0, -1)).to.deep.equal(expected.ids);
    expect(model.config.eosTokenIds).to.include(tokenIds.at(-1));
  });

  const isFull = process.env.MOE_FULL_EVALUATION === '1';
  it(`has the recorded likelihoods of quantized inputs, on ${isFull ? 'the whole evaluation' : 'every fortieth text'}`, async () => {
    const chosen = isFull ? samples : samples.filter((_, index) => index % 40 === 0);
    const { total, known } = await evaluate(model, 'weight_and_activation', chosen);
    if (isFull) console.log(`      total ${total.toFixed(5)}, known words ${known.toFixed(5)} of the record`);
    // A sixteenth of the texts scatters four times as far as all of them, see pocket-dictionary.test.ts.
    expect(total).to.be.closeTo(1, isFull ? 0.01 : 0.04);
  });
});

describe('moe-server start --simulate', function () {
  this.timeout(120_000);

  it('says that it is slow and simulated, and answers', async () => {
    const server = await startServer('--simulate', 'gb10', '--max-num-seqs', '4');
    try {
      expect(server.output())
        .to.match(/NVIDIA GB10 \(SM 12\.1\), simulated/)
        .and.to.contain('Slow');
      const response = await fetch(`${server.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ messages: [{ role: 'user', content: 'What does serendipity mean?' }], temperature: 0 }),
      });
      expect(await response.text()).to.contain('good luck');
      const plan = (await (await fetch(`${server.url}/v1/moe/plan`)).json()) as { assumesBuilt: boolean };
      expect(plan.assumesBuilt).to.equal(true);
    } finally {
      await server.stop();
    }
  });

  it('refuses devices that nobody knows, and the reference device beside it', async () => {
    for (const flags of [
      ['--simulate', 'gb99'],
      ['--simulate', 'gb10', '--device', 'reference'],
    ]) {
      const failure: unknown = await startServer(...flags).catch((thrown: unknown) => thrown);
      expect(String(failure), flags.join(' ')).to.contain('ended with 64');
    }
  });
});
