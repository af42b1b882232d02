import { expect } from 'chai';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { ReadBuffer } from '../../src/checkpoint/read-buffer.js';
import type { MoeError } from '../../src/errors.js';
import { bf16ToFloat32 } from '../../src/quant/bf16.js';
import { decodeWeights } from '../../src/quant/decode-weights.js';
import type { TensorToWrite } from './checkpoint-writer.js';
import type { Storage, Tensors } from './tiny-models.js';
import { bf16, floats, removeTensors, tinyQwen3Moe, tinySizes, withCheckpoint } from './tiny-models.js';

const experts = 'model.layers.0.mlp.experts';
const { hidden: h, intermediate: i, experts: e } = tinySizes;

function valuesOf({ bytes }: TensorToWrite): Float32Array {
  return bf16ToFloat32(new Uint16Array((bytes as Uint8Array<ArrayBuffer>).buffer));
}

function model(storage: Storage, quantization: Record<string, unknown>): { config: Record<string, unknown>; tensors: Tensors } {
  const { config, tensors } = tinyQwen3Moe((module) => (module.includes('.experts.') ? storage : 'bf16'));
  return { config: { ...config, quantization_config: quantization }, tensors };
}

const modelopt = (algorithm: string): Record<string, unknown> => ({
  quant_method: 'modelopt',
  quant_algo: 'MIXED_PRECISION',
  quantized_layers: { [experts]: { quant_algo: algorithm } },
});

const compressed = (weights: unknown, inputs: unknown): Record<string, unknown> => ({
  quant_method: 'compressed-tensors',
  config_groups: { g: { targets: ['re:.*experts.*'], weights, input_activations: inputs, format: 'f' } },
});

const fp4 = { num_bits: 4, type: 'float', group_size: 16 };
const nvfp4 = (): ReturnType<typeof model> => model('nvfp4', modelopt('NVFP4'));
const fp8 = (): ReturnType<typeof model> => model('fp8', modelopt('FP8'));
const channel = (): ReturnType<typeof model> => model('fp8-channel', modelopt('FP8_PER_CHANNEL_PER_TOKEN'));
const block = (): ReturnType<typeof model> =>
  model('fp8-block', {
    quant_method: 'fp8',
    weight_block_size: [128, 128],
    modules_to_not_convert: ['model.layers.0.self_attn', 'lm_head'],
  });
const mxfp4 = (): ReturnType<typeof model> => model('mxfp4', compressed({ num_bits: 4, type: 'float', group_size: 32 }, null));

/** The first error of reading every expert. */
async function readingError(broken: ReturnType<typeof model>): Promise<MoeError> {
  return withCheckpoint(broken, async (checkpoint) => {
    const [group] = describeModel(checkpoint).groups;
    const weights = openExpertWeights(checkpoint, group ?? expect.fail());
    for (let slot = 0; slot < weights.numExperts; slot++) {
      try {
        await weights.expert(slot);
      } catch (error) {
        return error as MoeError;
      }
    }
    return expect.fail('every expert was read');
  });
}

function withBytes(tensor: TensorToWrite | undefined, change: (bytes: Uint8Array<ArrayBuffer>) => void): TensorToWrite {
  const bytes = Uint8Array.from(tensor?.bytes ?? expect.fail());
  change(bytes);
  return { dtype: 'U8', shape: [], ...tensor, bytes };
}

const brokenScales: readonly {
  readonly name: string;
  readonly build: () => ReturnType<typeof model>;
  readonly tensor: string;
  readonly value: number;
}[] = [
  { name: 'a NaN global scale', build: nvfp4, tensor: 'up_proj.weight_scale_2', value: NaN },
  { name: 'a negative global scale', build: nvfp4, tensor: 'up_proj.weight_scale_2', value: -1 },
  { name: 'an infinite input scale', build: nvfp4, tensor: 'up_proj.input_scale', value: Infinity },
  { name: 'a zero input scale', build: fp8, tensor: 'gate_proj.input_scale', value: 0 },
  { name: 'a NaN weight scale', build: fp8, tensor: 'gate_proj.weight_scale', value: NaN },
];

describe('openExpertWeights', () => {
  for (const { name, build, tensor, value } of brokenScales) {
    it(`refuses ${name}, naming the tensor`, async () => {
      const broken = build();
      const full = `${experts}.1.${tensor}`;
      broken.tensors[full] = floats([], Float32Array.of(value));
      const error = await readingError(broken);
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      expect(error.message).to.include(full).and.to.include('element 0').and.to.include(String(value));
    });
  }

  const brokenArrays: readonly [string, () => ReturnType<typeof model>, string, (bytes: Uint8Array<ArrayBuffer>) => void, string][] = [
    ['a NaN block scale of NVFP4', nvfp4, 'weight_scale', (bytes) => (bytes[5] = 0x7f), 'element 5 is NaN'],
    ['a negative block scale of NVFP4', nvfp4, 'weight_scale', (bytes) => (bytes[6] = 0x90), 'element 6 is negative'],
    ['a NaN block scale of MXFP4', mxfp4, 'weight_scale', (bytes) => (bytes[3] = 255), 'element 3 is NaN'],
    ['a zero row scale of FP8', channel, 'weight_scale', (bytes) => bytes.fill(0, 8, 12), 'element 2 is 0'],
    ['a NaN block scale of FP8', block, 'weight_scale_inv', (bytes) => bytes.fill(255), 'element 0 is NaN'],
  ];
  for (const [name, build, suffix, change, says] of brokenArrays) {
    it(`refuses ${name}, naming tensor and index`, async () => {
      const broken = build();
      const full = `${experts}.1.gate_proj.${suffix}`;
      broken.tensors[full] = withBytes(broken.tensors[full], change);
      const error = await readingError(broken);
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      expect(error.message).to.include(full).and.to.include(says);
      expect(error.details).to.include({ file: 'model.safetensors', tensor: full });
    });
  }

  const brokenWeights: readonly [string, () => ReturnType<typeof model>, number[], number][] = [
    ['NaN in FP8', fp8, [0xff], 20],
    ['infinite in bf16', tinyQwen3Moe, [0x80, 0x7f], 10],
  ];
  for (const [name, build, pattern, index] of brokenWeights) {
    it(`refuses weights that are ${name}, naming tensor and index`, async () => {
      const broken = build();
      const full = `${experts}.1.down_proj.weight`;
      broken.tensors[full] = withBytes(broken.tensors[full], (bytes) => {
        bytes.set(pattern, 20);
      });
      const error = await readingError(broken);
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      expect(error.message).to.include(`${full}: element ${String(index)} is NaN or infinite`);
    });
  }

  it('ignores the input scale of weight-only experts, however broken', () => {
    const weightOnly = model('nvfp4', modelopt('W4A16_NVFP4'));
    weightOnly.tensors[`${experts}.0.gate_proj.input_scale`] = floats([], Float32Array.of(NaN));
    return withCheckpoint(weightOnly, async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      const { gate } = await openExpertWeights(checkpoint, group ?? expect.fail()).expert(0);
      expect(gate).to.include({ inputScale: undefined, globalScaleIs: 'factor' });
    });
  });

  it('turns the divisors of compressed-tensors into what the contract says', () =>
    withCheckpoint(model('ct-nvfp4', compressed(fp4, { ...fp4, dynamic: 'local' })), async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      const { gate, down } = await openExpertWeights(checkpoint, group ?? expect.fail()).expert(1);
      expect(gate).to.include({ globalScaleIs: 'divisor', inputScale: Math.fround(1 / 3), rows: i, columns: h });
      expect(down).to.include({ rows: h, columns: i });
    }));

  it('accepts FP8 scales in BF16, and scalars of shape [1]', () => {
    const { config, tensors } = fp8();
    tensors[`${experts}.0.gate_proj.weight_scale`] = { dtype: 'BF16', shape: [1], bytes: Uint8Array.of(0x80, 0x3f) };
    return withCheckpoint({ config, tensors }, async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      expect((await openExpertWeights(checkpoint, group ?? expect.fail()).expert(0)).gate).to.include({ scale: 1, inputScale: 0.5 });
    });
  });

  it('accepts power-of-two block scales in E8M0', () => {
    const { config, tensors } = block();
    tensors[`${experts}.0.gate_proj.weight_scale_inv`] = { dtype: 'F8_E8M0', shape: [1, 1], bytes: Uint8Array.of(126) };
    return withCheckpoint({ config, tensors }, async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      const { gate } = await openExpertWeights(checkpoint, group ?? expect.fail()).expert(0);
      expect(gate).to.deep.include({ blockScales: Float32Array.of(0.5) });
    });
  });

  it('reads the same experts from fused tensors', () => {
    const separate = tinyQwen3Moe();
    const fused: Tensors = {};
    const join = (names: readonly string[], shape: readonly number[]): TensorToWrite => ({
      dtype: 'BF16',
      shape,
      bytes: Buffer.concat(names.map((name) => separate.tensors[`${experts}.${name}.weight`]?.bytes ?? expect.fail(name))),
    });
    fused[`${experts}.gate_up_proj`] = join(['0.gate_proj', '0.up_proj', '1.gate_proj', '1.up_proj'], [e, 2 * i, h]);
    fused[`${experts}.down_proj`] = join(['0.down_proj', '1.down_proj'], [e, h, i]);
    for (const [name, tensor] of Object.entries(separate.tensors)) if (!name.includes('.experts.')) fused[name] = tensor;
    return withCheckpoint({ config: separate.config, tensors: fused }, async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      const weights = openExpertWeights(checkpoint, group ?? expect.fail());
      for (let slot = 0; slot < e; slot++) {
        const { gate, up, down } = await weights.expert(slot);
        for (const [name, matrix] of Object.entries({ gate_proj: gate, up_proj: up, down_proj: down })) {
          const tensor = separate.tensors[`${experts}.${String(slot)}.${name}.weight`] ?? expect.fail(name);
          expect(decodeWeights(matrix), name).to.deep.equal(valuesOf(tensor));
        }
      }
    });
  });

  it('transposes and de-interleaves unquantized gpt-oss experts', () => {
    const { config, tensors } = tinyGptOss();
    return withCheckpoint({ config, tensors }, async (checkpoint) => {
      const [group] = describeModel(checkpoint).groups;
      expect(group).to.deep.include({ hasBias: true, activation: { type: 'swiglu', alpha: 1.702, limit: 7 } });
      const { gate, up, down, bias } = await openExpertWeights(checkpoint, group ?? expect.fail()).expert(1);
      const gateUp = valuesOf(tensors[`${experts}.gate_up_proj`] ?? expect.fail()).subarray(h * 2 * i);
      const downValues = valuesOf(tensors[`${experts}.down_proj`] ?? expect.fail()).subarray(i * h);
      const [row, column] = [3, 5];
      expect(decodeWeights(gate)[row * h + column]).to.equal(gateUp[column * 2 * i + 2 * row]);
      expect(decodeWeights(up)[row * h + column]).to.equal(gateUp[column * 2 * i + 2 * row + 1]);
      expect(decodeWeights(down)[column * i + row]).to.equal(downValues[row * h + column]);
      const biases = valuesOf(tensors[`${experts}.gate_up_proj_bias`] ?? expect.fail()).subarray(2 * i);
      expect([bias?.gate[row], bias?.up[row]]).to.deep.equal([biases[2 * row], biases[2 * row + 1]]);
      expect(bias?.down).to.deep.equal(valuesOf(tensors[`${experts}.down_proj_bias`] ?? expect.fail()).slice(h));
    });
  });

  const gptOss = (): ReturnType<typeof model> => tinyGptOss();
  for (const [name, make] of Object.entries({ nvfp4, fp8, channel, block, mxfp4, bf16: () => tinyQwen3Moe(), gptOss })) {
    it(`reads the same ${name} experts into memory that serves again`, () =>
      withCheckpoint(make(), async (checkpoint) => {
        const [group] = describeModel(checkpoint).groups;
        const weights = openExpertWeights(checkpoint, group ?? expect.fail());
        const memory = new ReadBuffer();
        for (const slot of [0, 1, 0, 1]) {
          expect(await weights.expert(slot, memory)).to.deep.equal(await weights.expert(slot));
        }
        expect(memory.byteLength).to.be.above(0);
      }));
  }

  it('refuses a slot that the group does not have, and placements on several ranks', () =>
    withCheckpoint(tinyQwen3Moe(), async (checkpoint) => {
      const { groups, linears } = describeModel(checkpoint);
      const group = groups[0] ?? expect.fail();
      const linear = linears[0] ?? expect.fail();
      expect(
        await openExpertWeights(checkpoint, group)
          .expert(2)
          .catch((error: unknown) => error),
      ).to.include({ code: 'MOE_INTERNAL' });
      expect(
        await openLinearWeights(checkpoint, linear)
          .module(3)
          .catch((error: unknown) => error),
      ).to.include({ code: 'MOE_INTERNAL' });
      const parallel = { tpRank: 0, tpSize: 1, epRank: 1, epSize: 2 };
      expect(() => openExpertWeights(checkpoint, { ...group, parallel })).to.throw('expert parallel size 2');
      expect(() => openLinearWeights(checkpoint, { ...linear, parallel })).to.throw(linear.name);
    }));
});

describe('openLinearWeights', () => {
  it('reads each module with its own scales, and biases', () => {
    const { config, tensors } = tinyQwen3Moe((module) => (module.includes('self_attn') ? 'fp8' : 'bf16'));
    for (const [name, rows] of [
      ['q_proj', 128],
      ['k_proj', 64],
      ['v_proj', 64],
      ['o_proj', 64],
    ] as const) {
      tensors[`model.layers.0.self_attn.${name}.bias`] = name === 'k_proj' ? floats([rows], new Float32Array(rows).fill(2)) : bf16([rows]);
    }
    const quantization = { quant_method: 'modelopt', quant_algo: 'FP8', exclude_modules: ['lm_head', experts] };
    return withCheckpoint(
      { config: { ...config, attention_bias: true, quantization_config: quantization }, tensors },
      async (checkpoint) => {
        const [qkv] = describeModel(checkpoint).linears;
        const weights = openLinearWeights(checkpoint, qkv ?? expect.fail());
        expect(weights.numModules).to.equal(3);
        const scales: unknown[] = [];
        for (let index = 0; index < 3; index++) {
          const { matrix, bias } = await weights.module(index);
          scales.push('scale' in matrix ? matrix.scale : undefined);
          expect(bias).to.have.length(matrix.rows);
        }
        expect((await weights.module(1)).bias?.[0]).to.equal(2);
        expect(new Set(scales).size).to.equal(3);
      },
    );
  });
});

function tinyGptOss(): { config: Record<string, unknown>; tensors: Tensors } {
  const { config, tensors } = tinyQwen3Moe();
  removeTensors(tensors, (name) => name.includes('.experts.'));
  for (const [name, rows] of [
    ['q_proj', 128],
    ['k_proj', 64],
    ['v_proj', 64],
    ['o_proj', 64],
  ] as const) {
    tensors[`model.layers.0.self_attn.${name}.bias`] = bf16([rows]);
  }
  tensors[`${experts}.gate_up_proj`] = bf16([e, h, 2 * i], 2);
  tensors[`${experts}.gate_up_proj_bias`] = bf16([e, 2 * i], 3);
  tensors[`${experts}.down_proj`] = bf16([e, i, h], 4);
  tensors[`${experts}.down_proj_bias`] = bf16([e, h], 5);
  return {
    config: { ...config, architectures: ['GptOssForCausalLM'], model_type: 'gpt_oss', intermediate_size: i, num_local_experts: e },
    tensors,
  };
}
