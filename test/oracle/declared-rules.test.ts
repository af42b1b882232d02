import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type {
  Arithmetic,
  DeviceInfo,
  ExpertGroupSpec,
  ExpertMatrices,
  LinearBackend,
  LinearSpec,
  MoeBackend,
  NumericsClass,
  SchemeKey,
  SchemeRegistry,
} from '@moe-server/core';
import { Checkpoint, deriveNumerics, describeModel, openExpertWeights, openLinearWeights, schemeInfo } from '@moe-server/core';
import { referenceExperts, referenceLinear } from '@moe-server/core/conformance';
import { B12xMoeBackend } from '@moe-server/backend-b12x';
import { CutlassLinearBackend, CutlassMoeBackend } from '@moe-server/backend-cutlass';
import { TritonLinearBackend, TritonMoeBackend } from '@moe-server/backend-triton';
import { fixtureFolders, readSafetensors, relativeL2, valuesOf } from '@moe-server/test-kit';
import { expect } from 'chai';

/**
 * Every rule of the GPU families on the recorded stages, also those that no device would choose: weights packed and unpacked by the plugin, computed as the
 * rule declares. A simulated model runs the chosen ones (test/e2e/simulate.test.ts).
 */

// Handing a backend weights of a scheme it does not list is what the types forbid; here the rules are asked instead.
const moeBackends = [new B12xMoeBackend(), new CutlassMoeBackend(), new TritonMoeBackend()] as unknown as readonly MoeBackend[];
const linearBackends = [new CutlassLinearBackend(), new TritonLinearBackend()] as unknown as readonly LinearBackend[];
const device: DeviceInfo = { type: 'cuda', name: 'any device', sm: 121, memoryBytes: undefined };
const numTokens = 17;

/** The recorded stages round where the rules do, but for the output; without that rounding only the order of sums is left. */
const exactTolerance = 1e-5;
/** A value of the intermediate beside a rounding boundary may fall to the other side; quantized again, as in act_quant, it is the same code. */
const bf16IntermediateTolerance = 1e-3;
const bf16OutputTolerance = 0.006;

interface Reference {
  readonly kernel: { readonly moe: Readonly<Record<string, unknown>>; readonly linear: Readonly<Record<string, unknown>> };
  readonly reference_tensors: Readonly<Record<string, unknown>>;
}

type Tensors = ReturnType<typeof readSafetensors>;

/** The class that computes a mode: inputs as the scheme says or wider; where a scheme leaves inputs alone there is one class. */
function classOf(scheme: SchemeKey, mode: 'weight_only' | 'act_quant'): NumericsClass {
  return mode === 'act_quant' || schemeInfo(scheme)?.input.type === 'none' ? 'same' : 'wider';
}

/** Rules of a backend that compute `scheme` in `mode`. */
function rulesFor<R extends { readonly schemes: readonly SchemeKey[]; readonly arithmetic: Arithmetic }>(
  rules: readonly R[],
  scheme: SchemeKey,
  mode: 'weight_only' | 'act_quant',
): R[] {
  const info = schemeInfo(scheme);
  return rules.filter((rule) => info && rule.schemes.includes(scheme) && deriveNumerics(info, rule.arithmetic) === classOf(scheme, mode));
}

const withoutOutputRounding = (arithmetic: Arithmetic): Arithmetic => ({ ...arithmetic, output: 'f32' });

/** What a group adds, computed on the weights that come back from the plugin's layout. */
async function groupOutput(
  backend: MoeBackend,
  rule: MoeBackend['rules'][number],
  checkpoint: Checkpoint,
  group: ExpertGroupSpec,
  values: (name: string) => Float32Array,
  arithmetic: Arithmetic,
): Promise<Float64Array> {
  const packed = await backend.pack(group, rule, openExpertWeights(checkpoint, group), { device });
  const experts: ExpertMatrices[] = group.experts.map((_, slot) => backend.unpack(group, packed, slot));
  const ids = values('topk_ids');
  return referenceExperts({
    group,
    arithmetic,
    experts,
    numTokens,
    topK: ids.length / numTokens,
    hiddenStates: values('x'),
    topkSlots: Int32Array.from(ids, (id) => group.experts.indexOf(id)),
    topkWeights: values('topk_weights'),
  });
}

/** Vision checkpoints put the text model one level deeper. */
function nameInReference({ name }: { readonly name: string }): string {
  return name.replace('model.language_model.', 'model.');
}

async function moduleOutput(
  backend: LinearBackend,
  rule: LinearBackend['rules'][number],
  checkpoint: Checkpoint,
  linear: LinearSpec,
  moduleName: string,
  input: Float32Array,
  arithmetic: Arithmetic,
): Promise<Float64Array> {
  const packed = await backend.pack(linear, rule, openLinearWeights(checkpoint, linear), { device });
  const matrix: SchemeRegistry[SchemeKey] = backend.unpack(linear, packed)[
    linear.modules.findIndex((one) => nameInReference(one) === moduleName)
  ]!;
  const { inFeatures } = linear;
  return referenceLinear({
    linear: { inFeatures, outFeatures: matrix.rows },
    arithmetic,
    modules: [{ matrix, bias: undefined }],
    numTokens,
    input,
  });
}

describe('declared rules of the GPU families', () => {
  for (const folder of fixtureFolders()) {
    describe(basename(folder), () => {
      const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as Reference;
      let checkpoint: Checkpoint;
      let tensors: Tensors;
      const values = (name: string): Float32Array => Float32Array.from(valuesOf(tensors.get(name)!));
      before(async () => {
        checkpoint = await Checkpoint.open(folder);
        tensors = readSafetensors(join(folder, 'reference.safetensors'));
      });
      after(() => checkpoint.close());

      for (const mode of ['act_quant', 'weight_only'] as const) {
        for (const layer of Object.keys(reference.kernel.moe)) {
          const y = `kernel/layer.${layer}/${mode}/y`;
          if (!(y in reference.reference_tensors)) continue;
          it(`compute the experts of layer ${layer}, ${mode}`, async () => {
            const groups = describeModel(checkpoint).groups.filter(
              ({ role, layerIndex }) => role === 'target' && layerIndex === Number(layer),
            );
            const stage = (name: string): Float32Array => values(`kernel/layer.${layer}/${name}`);
            let numComputed = 0;
            for (const backend of moeBackends) {
              const chosen = groups.map((group) => rulesFor(backend.rules, group.schemes.w13, mode)[0]);
              if (chosen.includes(undefined)) continue;
              for (const [rounded, tolerance] of [
                [false, mode === 'act_quant' ? exactTolerance : bf16IntermediateTolerance],
                [true, bf16OutputTolerance],
              ] as const) {
                const sum = new Float64Array(stage('x').length);
                for (const [index, group] of groups.entries()) {
                  const rule = chosen[index]!;
                  const arithmetic = rounded ? rule.arithmetic : withoutOutputRounding(rule.arithmetic);
                  const part = await groupOutput(backend, rule, checkpoint, group, stage, arithmetic);
                  for (const [i, value] of part.entries()) sum[i] = sum[i]! + value;
                }
                expect(relativeL2(Float32Array.from(sum), values(y)), `${backend.name}, ${String(rounded)}`).to.be.below(tolerance);
              }
              numComputed++;
            }
            expect(numComputed).to.be.greaterThan(0);
          });
        }

        for (const name of Object.keys(reference.kernel.linear)) {
          const y = `kernel/linear/${name}/${mode}/y`;
          if (!(y in reference.reference_tensors)) continue;
          it(`compute ${name}, ${mode}`, async () => {
            const linear = describeModel(checkpoint).linears.find(({ modules }) =>
              modules.some((module) => nameInReference(module) === name),
            )!;
            const input = values(`kernel/linear/${name}/x`);
            let numComputed = 0;
            for (const backend of linearBackends) {
              for (const rule of rulesFor(backend.rules, linear.scheme, mode)) {
                const { arithmetic } = rule;
                const exact = await moduleOutput(backend, rule, checkpoint, linear, name, input, withoutOutputRounding(arithmetic));
                expect(relativeL2(Float32Array.from(exact), values(y)), `${backend.name}/${rule.id}`).to.be.below(exactTolerance);
                const rounded = await moduleOutput(backend, rule, checkpoint, linear, name, input, arithmetic);
                expect(relativeL2(Float32Array.from(rounded), values(y)), `${backend.name}/${rule.id}`).to.be.below(bf16OutputTolerance);
                numComputed++;
              }
            }
            expect(numComputed).to.be.greaterThan(0);
          });
        }
      }
    });
  }
});
