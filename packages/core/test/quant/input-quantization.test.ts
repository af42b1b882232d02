import { basename, join } from 'node:path';
import { readFileSync } from 'node:fs';
import type { ReferenceTensor } from '@moe-server/test-kit';
import { fixtureFolders, readSafetensors, valuesOf } from '@moe-server/test-kit';
import { expect } from 'chai';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import type { ModelDescription } from '../../src/checkpoint/describe-model.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import type { ExpertGroupSpec, LinearSpec } from '../../src/layer-spec.js';
import { quantizeFp8Input } from '../../src/quant/fp8.js';
import { applyInputQuantization } from '../../src/quant/input-quantization.js';
import { quantizeNvfp4Input } from '../../src/quant/nvfp4.js';
import type { SchemeKey } from '../../src/quant/quant-scheme.js';
import { schemeInfo } from '../../src/quant/quant-scheme.js';

type Tensors = ReadonlyMap<string, ReferenceTensor>;

/** Quantizes rows as `scheme` says and compares with the recorded codes and scales named `<prefix>_codes`, `_fp8` and `_scales`. */
function expectRecordedCodes(
  tensors: Tensors,
  prefix: string,
  row: number,
  x: Float32Array,
  scheme: SchemeKey,
  inputScale: number | undefined,
): void {
  const { input } = schemeInfo(scheme) ?? expect.fail(scheme);
  const recorded = (suffix: string, elements: number): Uint8Array => {
    const { bytes } = tensors.get(`${prefix}_${suffix}`) ?? expect.fail(`${prefix}_${suffix} is not recorded`);
    return bytes.slice(row * elements, (row + 1) * elements);
  };
  if (input.type === 'nvfp4') {
    const { codes, blockScales } = quantizeNvfp4Input(x, x.length, inputScale ?? expect.fail('no input scale'));
    expect(codes, `${prefix}_codes, row ${String(row)}`).to.deep.equal(recorded('codes', codes.length));
    expect(blockScales, `${prefix}_scales, row ${String(row)}`).to.deep.equal(recorded('scales', blockScales.length));
  } else if (input.type === 'fp8') {
    const { codes, scales } = quantizeFp8Input(x, x.length, input.granularity, input.scale === 'static' ? inputScale : undefined);
    expect(codes, `${prefix}_fp8, row ${String(row)}`).to.deep.equal(recorded('fp8', codes.length));
    if (input.scale === 'dynamic') {
      const bytes = recorded('scales', 4 * scales.length);
      expect(scales, `${prefix}_scales, row ${String(row)}`).to.deep.equal(new Float32Array(bytes.buffer));
    }
  }
}

function inputScaleOf(weights: object): number | undefined {
  return 'inputScale' in weights ? (weights.inputScale as number | undefined) : undefined;
}

async function checkExperts(checkpoint: Checkpoint, group: ExpertGroupSpec, tensors: Tensors): Promise<number> {
  const stage = `kernel/layer.${String(group.layerIndex)}`;
  const x = tensors.get(`${stage}/x`);
  if (x === undefined || schemeInfo(group.schemes.w13)?.input.type === 'none' || group.experts.length < group.numExperts) return 0;
  const weights = openExpertWeights(checkpoint, group);
  const experts = await Promise.all(group.experts.map(async (_, slot) => weights.expert(slot)));
  const rows = valuesOf(x) as Float32Array;
  const ids = valuesOf(tensors.get(`${stage}/topk_ids`) ?? expect.fail()) as Int32Array;
  const h = valuesOf(tensors.get(`${stage}/act_quant/h`) ?? expect.fail()) as Float32Array;
  for (let token = 0; token < rows.length / group.hiddenSize; token++) {
    const row = rows.subarray(token * group.hiddenSize, (token + 1) * group.hiddenSize);
    expectRecordedCodes(tensors, `${stage}/act_quant/x`, token, row, group.schemes.w13, inputScaleOf(experts[0]?.gate ?? {}));
  }
  for (const [pair, id] of ids.entries()) {
    const row = h.subarray(pair * group.moeIntermediateSize, (pair + 1) * group.moeIntermediateSize);
    expectRecordedCodes(tensors, `${stage}/act_quant/h`, pair, row, group.schemes.w2, inputScaleOf(experts[id]?.down ?? {}));
  }
  return ids.length;
}

async function checkLinear(checkpoint: Checkpoint, linear: LinearSpec, tensors: Tensors): Promise<number> {
  let compared = 0;
  for (const [index, { name }] of linear.modules.entries()) {
    const stage = `kernel/linear/${name.replace('model.language_model.', 'model.')}`;
    const x = tensors.get(`${stage}/x`);
    if (x === undefined || schemeInfo(linear.scheme)?.input.type === 'none') continue;
    const { matrix } = await openLinearWeights(checkpoint, linear).module(index);
    const rows = valuesOf(x) as Float32Array;
    for (let token = 0; token < rows.length / linear.inFeatures; token++) {
      const row = rows.subarray(token * linear.inFeatures, (token + 1) * linear.inFeatures);
      expectRecordedCodes(tensors, `${stage}/act_quant/x`, token, row, linear.scheme, inputScaleOf(matrix));
      compared++;
    }
  }
  return compared;
}

describe('input quantization', () => {
  for (const folder of fixtureFolders()) {
    const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as {
      readonly modes: Readonly<Record<string, unknown>>;
    };
    if (!('act_fp8' in reference.modes) && !('act_quant' in reference.modes)) continue;

    describe(basename(folder), () => {
      let checkpoint: Checkpoint;
      let model: ModelDescription;
      const tensors = readSafetensors(join(folder, 'reference.safetensors'));

      before(async () => {
        checkpoint = await Checkpoint.open(folder);
        model = describeModel(checkpoint);
      });
      after(() => checkpoint.close());

      it('gives the recorded codes and scales of expert and linear inputs, bit for bit', async () => {
        let compared = 0;
        for (const group of model.groups) if (group.role === 'target') compared += await checkExperts(checkpoint, group, tensors);
        for (const linear of model.linears) compared += await checkLinear(checkpoint, linear, tensors);
        // Where the experts of a layer differ in scheme no codes are recorded.
        const isRecorded = [...tensors.keys()].some((name) => /x_(codes|fp8)$/.test(name));
        expect(compared > 0).to.equal(isRecorded);
      });
    });
  }

  it('leaves the input alone where the scheme does', () => {
    const x = Float32Array.of(1, 2);
    expect(applyInputQuantization(x, 2, { type: 'none' }, undefined)).to.equal(x);
  });

  it('refuses a static scale that is missing', () => {
    const quantization = { type: 'fp8', granularity: 'tensor', scale: 'static' } as const;
    expect(() => applyInputQuantization(Float32Array.of(1), 1, quantization, undefined)).to.throw(RangeError, 'input scale');
    expect(applyInputQuantization(Float32Array.of(1.01), 1, quantization, 1)).to.deep.equal(Float32Array.of(1));
  });

  it('rounds to signed 8-bit integers per token or per 32 columns', () => {
    const x = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? 127 : 12.7));
    x[1] = 2.5;
    x[33] = 0.26;
    const grouped = applyInputQuantization(x, 64, { type: 'int8', granularity: 'group32' }, undefined);
    expect([grouped[0], grouped[1]]).to.deep.equal([127, 2]);
    expect(grouped[33]).to.be.closeTo(0.3, 1e-6);
    const perToken = applyInputQuantization(x, 64, { type: 'int8', granularity: 'token' }, undefined);
    expect([perToken[1], perToken[33], perToken[34]]).to.deep.equal([2, 0, 13]);
  });
});
