import { expect } from 'chai';
import { parseQuantization } from '../../../src/checkpoint/quantization/parse-quantization.js';
import type { MoeError } from '../../../src/errors.js';
import { isMoeError } from '../../../src/errors.js';

const expert = 'model.layers.0.mlp.experts.3.gate_proj';

function withSection(section: unknown): ReturnType<typeof parseQuantization> {
  return parseQuantization({ quantization_config: section }, undefined);
}

function refusal(act: () => unknown): MoeError {
  try {
    act();
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  return expect.fail('it was accepted');
}

describe('parseQuantization', () => {
  it('takes a checkpoint without a section as unquantized', () => {
    const config = parseQuantization({}, undefined);
    expect(config.schemeOf(expert)).to.equal(undefined);
    expect(config).to.include({ kvCacheScheme: 'none', summary: 'none' });
  });

  for (const method of ['awq', 'gptq', 'bitsandbytes', 'gguf', 'quark']) {
    it(`refuses ${method} by name, listing what is supported`, () => {
      const error = refusal(() => withSection({ quant_method: method, bits: 4 }));
      expect(error.code).to.equal('MOE_UNSUPPORTED_QUANTIZATION');
      for (const part of [method.toUpperCase(), 'modelopt', 'compressed-tensors', 'bf16']) expect(error.message).to.include(part);
    });
  }

  for (const section of [7, 'fp8', [], { bits: 4 }]) {
    it(`refuses the section ${JSON.stringify(section)}, naming the field`, () => {
      const error = refusal(() => withSection(section));
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.message).to.include('config.json').and.to.include('quantization_config');
    });
  }

  it('finds the section inside text_config', () => {
    const config = parseQuantization(
      { text_config: { quantization_config: { quant_method: 'fp8', weight_block_size: [128, 128] } } },
      undefined,
    );
    expect(config.schemeOf(expert)).to.equal('fp8.block128');
  });
});

describe('modelopt', () => {
  const algorithms: readonly [string, string][] = [
    ['NVFP4', 'nvfp4.w4a4'],
    ['W4A16_NVFP4', 'nvfp4.w4a16'],
    ['FP8', 'fp8.tensor.static'],
    ['FP8_PER_CHANNEL_PER_TOKEN', 'fp8.channel'],
    ['FP8_PB_WO', 'fp8.block128'],
    ['FP8_BLOCK_SCALES', 'fp8.block128'],
  ];
  for (const [algorithm, scheme] of algorithms) {
    it(`reads ${algorithm} from hf_quant_config.json alone and from config.json`, () => {
      const section = { quant_algo: algorithm, exclude_modules: ['lm_head', 'model.layers.0.self_attn*'] };
      const alone = parseQuantization({}, { producer: { name: 'modelopt' }, quantization: section });
      const inConfig = withSection({ quant_algo: algorithm, ignore: section.exclude_modules, producer: { name: 'modelopt' } });
      for (const config of [alone, inConfig]) {
        expect(config.schemeOf(expert)).to.equal(scheme);
        expect(config.schemeOf('lm_head')).to.equal(undefined);
        expect(config.schemeOf('model.layers.0.self_attn.q_proj')).to.equal(undefined);
      }
    });
  }

  for (const algorithm of ['W4A16_AWQ', 'NVFP4_AWQ', 'NVFP4_SVD', 'W4A8_AWQ', 'W4A8_NVFP4_FP8', 'W4A8_MXFP4_FP8', 'MXFP8', 'constructor']) {
    it(`refuses ${algorithm} by name`, () => {
      const error = refusal(() => withSection({ quant_method: 'modelopt', quant_algo: algorithm }));
      expect(error.code).to.equal('MOE_UNSUPPORTED_QUANTIZATION');
      expect(error.message).to.include(algorithm);
    });
  }

  const mixed = {
    quant_method: 'modelopt',
    quant_algo: 'MIXED_PRECISION',
    quantized_layers: {
      'model.language_model.layers.0.mlp.experts': { quant_algo: 'NVFP4', group_size: 16 },
      'model.layers.1.mlp.experts.3.gate_proj': { quant_algo: 'FP8' },
      'model.layers.2.mlp.experts.3': { quant_algo: 'W4A16_NVFP4' },
      'model.layers.0.self_attn.o_proj': { quant_algo: 'FP8' },
      'model.layers.5.self_attn.o_proj': { quant_algo: 'MXFP8' },
    },
    config_groups: { group_0: { weights: { num_bits: 2 }, targets: ['Linear'] } },
  };

  it('follows quantized_layers: the experts module, one expert, or one projection', () => {
    const { schemeOf } = withSection(mixed);
    expect(schemeOf('model.language_model.layers.0.mlp.experts.7.down_proj')).to.equal('nvfp4.w4a4');
    expect(schemeOf(expert)).to.equal('nvfp4.w4a4');
    expect(schemeOf('model.layers.1.mlp.experts.3.gate_proj')).to.equal('fp8.tensor.static');
    expect(schemeOf('model.layers.1.mlp.experts.3.up_proj')).to.equal(undefined);
    expect(schemeOf('model.layers.2.mlp.experts.3.up_proj')).to.equal('nvfp4.w4a16');
    expect(schemeOf('model.layers.2.mlp.experts.30.up_proj')).to.equal(undefined);
  });

  it('does not let a module inherit from its siblings', () => {
    const { schemeOf } = withSection(mixed);
    expect(schemeOf('model.layers.0.self_attn.o_proj')).to.equal('fp8.tensor.static');
    expect(schemeOf('model.layers.0.self_attn.q_proj')).to.equal(undefined);
  });

  it('refuses an unknown algorithm of a listed module only when the module is asked for', () => {
    const { schemeOf } = withSection(mixed);
    const error = refusal(() => schemeOf('model.layers.5.self_attn.o_proj'));
    expect(error.message).to.include('MXFP8').and.to.include('model.layers.5.self_attn.o_proj');
  });

  it('fills what config.json leaves out from hf_quant_config.json', () => {
    const config = parseQuantization({ quantization_config: mixed }, { quantization: { quant_algo: 'FP8', kv_cache_quant_algo: 'FP8' } });
    expect(config.kvCacheScheme).to.equal('fp8');
    expect(config.schemeOf(expert)).to.equal('nvfp4.w4a4');
  });

  const caches: readonly [unknown, string][] = [
    ['FP8', 'fp8'],
    ['NVFP4', 'nvfp4'],
    [{ num_bits: 8, type: 'float', dynamic: false }, 'fp8'],
    [null, 'none'],
  ];
  for (const [value, scheme] of caches) {
    it(`reads the KV cache scheme ${JSON.stringify(value)}`, () => {
      expect(withSection({ quant_method: 'modelopt', quant_algo: 'FP8', kv_cache_scheme: value }).kvCacheScheme).to.equal(scheme);
    });
  }

  it('takes quant_algo null as a quantized KV cache alone', () => {
    const config = parseQuantization(
      {},
      { producer: { name: 'modelopt' }, quantization: { quant_algo: null, kv_cache_quant_algo: 'FP8' } },
    );
    expect(config.kvCacheScheme).to.equal('fp8');
    expect(config.schemeOf(expert)).to.equal(undefined);
  });

  const wrong: readonly [string, Record<string, unknown>, string][] = [
    ['no quant_algo', { quant_method: 'modelopt' }, 'quant_algo'],
    ['groups of 32', { quant_method: 'modelopt', quant_algo: 'NVFP4', group_size: 32 }, 'group_size'],
    ['no quantized_layers', { quant_method: 'modelopt', quant_algo: 'MIXED_PRECISION' }, 'quantized_layers'],
    ['a string for an entry', { ...mixed, quantized_layers: { m: 'FP8' } }, 'quantized_layers.m'],
    ['a string for the exclusions', { quant_method: 'modelopt', quant_algo: 'FP8', exclude_modules: 'lm_head' }, 'exclude_modules'],
  ];
  for (const [name, section, field] of wrong) {
    it(`refuses ${name}, naming the field`, () => {
      const error = refusal(() => withSection(section));
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.details.field).to.equal(field);
    });
  }
});

describe('compressed-tensors', () => {
  const fp4 = { num_bits: 4, type: 'float', strategy: 'tensor_group', group_size: 16 };
  const fp8 = (strategy: string): Record<string, unknown> => ({ num_bits: 8, type: 'float', strategy });
  const token = { num_bits: 8, type: 'float', strategy: 'token', dynamic: true };
  const section = (groups: Record<string, unknown>, more: Record<string, unknown> = {}): Record<string, unknown> => ({
    quant_method: 'compressed-tensors',
    format: 'mixed-precision',
    config_groups: groups,
    ...more,
  });
  const single = (weights: unknown, inputs: unknown): ReturnType<typeof parseQuantization> =>
    withSection(section({ group_0: { targets: ['Linear'], weights, input_activations: inputs, format: 'f' } }));

  const schemes: readonly [string, unknown, unknown][] = [
    ['nvfp4.w4a16', fp4, null],
    ['nvfp4.w4a4', fp4, { ...fp4, dynamic: 'local' }],
    ['fp8.tensor.static', fp8('tensor'), { ...fp8('tensor'), dynamic: false }],
    ['fp8.tensor.dynamic', fp8('tensor'), token],
    ['fp8.channel', fp8('channel'), token],
    ['fp8.block128', { ...fp8('block'), block_structure: [128, 128] }, { ...fp8('group'), group_size: 128, dynamic: true }],
    ['mxfp4.w4a16', { num_bits: 4, type: 'float', strategy: 'group', group_size: 32, scale_dtype: 'torch.uint8' }, null],
  ];
  for (const [scheme, weights, inputs] of schemes) {
    it(`reads ${scheme}`, () => {
      expect(single(weights, inputs).schemeOf(expert)).to.equal(scheme);
    });
  }

  const unsupported: readonly [string, unknown, unknown][] = [
    ['INT4', { num_bits: 4, type: 'int', strategy: 'group', group_size: 128 }, null],
    ['INT8', { num_bits: 8, type: 'int', strategy: 'channel' }, { num_bits: 8, type: 'int', strategy: 'token', dynamic: true }],
    ['FLOAT8', fp8('tensor'), null],
    ['FLOAT8', { ...fp8('block'), block_structure: [64, 64] }, { ...fp8('group'), group_size: 128, dynamic: true }],
    ['FLOAT4', fp4, token],
  ];
  for (const [name, weights, inputs] of unsupported) {
    it(`refuses ${name} weights with inputs ${JSON.stringify(inputs)} for the module that is asked for`, () => {
      const config = single(weights, inputs);
      const error = refusal(() => config.schemeOf(expert));
      expect(error.code).to.equal('MOE_UNSUPPORTED_QUANTIZATION');
      for (const part of [name, expert, 'group_0']) expect(error.message).to.include(part);
    });
  }

  it('lets ignore beat all, names and expressions beat classes, and the first of them win', () => {
    const { schemeOf } = withSection(
      section(
        {
          g0: { targets: ['Linear'], weights: fp8('channel'), input_activations: token },
          g1: { targets: ['re:.*experts\\.3\\..*', 'model.layers.0.self_attn.q_proj'], weights: fp4, input_activations: null },
          g2: { targets: ['re:model\\.layers\\.0\\.'], weights: fp8('tensor'), input_activations: token },
        },
        { ignore: ['lm_head', 're:.*mlp\\.gate$'] },
      ),
    );
    expect(schemeOf(expert)).to.equal('nvfp4.w4a16');
    expect(schemeOf('model.layers.0.self_attn.q_proj')).to.equal('nvfp4.w4a16');
    expect(schemeOf('model.layers.0.self_attn.k_proj')).to.equal('fp8.tensor.dynamic');
    expect(schemeOf('model.layers.1.self_attn.k_proj')).to.equal('fp8.channel');
    expect(schemeOf('lm_head')).to.equal(undefined);
    expect(schemeOf('model.layers.0.mlp.gate')).to.equal(undefined);
    expect(schemeOf('model.layers.0.mlp.gate_proj')).to.equal('fp8.tensor.dynamic');
  });

  it('anchors expressions at the start only', () => {
    const { schemeOf } = withSection(section({ g: { targets: ['re:layers'], weights: fp4, input_activations: null } }));
    expect(schemeOf(expert)).to.equal(undefined);
  });

  const wrong: readonly [string, Record<string, unknown>, string][] = [
    ['groups that are no object', section([] as never), 'config_groups'],
    ['an expression that cannot be read', section({ g: { targets: ['re:(('], weights: fp4 } }), 're:(('.slice(3)],
    ['a repeated repetition', section({ g: { targets: ['re:(a+)+$'], weights: fp4 } }), '(a+)+$'],
    ['a model that is not compressed', section({}, { quantization_status: 'frozen' }), 'quantization_status'],
    ['targets that are no list', section({ g: { targets: 'Linear', weights: fp4 } }), 'targets'],
  ];
  for (const [name, config, part] of wrong) {
    it(`refuses ${name}`, () => {
      const error = refusal(() => withSection(config));
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.message).to.include(part);
    });
  }

  it('refuses transforms and sparsity, which change what weights mean', () => {
    expect(refusal(() => withSection(section({}, { transform_config: { config_groups: {} } }))).message).to.include('transform_config');
    expect(refusal(() => withSection(section({}, { sparsity_config: { format: 'sparse-24-bitmask' } }))).message).to.include(
      'sparse-24-bitmask',
    );
  });
});

describe('fp8 and mxfp4 of Hugging Face', () => {
  it('reads blocks, and exclusions by name', () => {
    const config = withSection({
      quant_method: 'fp8',
      fmt: 'e4m3',
      activation_scheme: 'dynamic',
      weight_block_size: [128, 128],
      modules_to_not_convert: ['model.layers.0.mlp.gate'],
    });
    expect(config.schemeOf('model.layers.0.mlp.gate_proj')).to.equal('fp8.block128');
    expect(config.schemeOf('model.layers.0.mlp.gate')).to.equal(undefined);
    expect(config.mayBePlain('lm_head')).to.equal(true);
    expect(config.mayBePlain(expert)).to.equal(false);
  });

  it('reads one scale per tensor, static or dynamic', () => {
    expect(withSection({ quant_method: 'fp8', activation_scheme: 'static' }).schemeOf(expert)).to.equal('fp8.tensor.static');
    expect(withSection({ quant_method: 'fp8', activation_scheme: 'dynamic', ignored_layers: ['lm_head'] }).schemeOf(expert)).to.equal(
      'fp8.tensor.dynamic',
    );
  });

  it('lets quantized_layers win over the blocks', () => {
    const config = withSection({
      quant_method: 'fp8',
      weight_block_size: [128, 128],
      quant_algo: 'MIXED_PRECISION',
      ignore: ['model.layers.0.self_attn*'],
      quantized_layers: { 'model.layers.0.mlp.experts': { quant_algo: 'NVFP4' } },
    });
    expect(config.schemeOf(expert)).to.equal('nvfp4.w4a4');
    expect(config.schemeOf('model.layers.0.self_attn.q_proj')).to.equal('fp8.block128');
  });

  it('refuses other blocks and formats', () => {
    expect(refusal(() => withSection({ quant_method: 'fp8', weight_block_size: [64, 64] })).message).to.include('[64,64]');
    expect(refusal(() => withSection({ quant_method: 'fp8', fmt: 'e5m2' })).message).to.include('e5m2');
    expect(refusal(() => withSection({ quant_method: 'fp8', activation_scheme: 'odd' })).message).to.include('activation_scheme');
  });

  it('gives MXFP4 to the experts of gpt-oss alone', () => {
    const config = withSection({ quant_method: 'mxfp4' });
    expect(config.schemeOf('model.layers.0.mlp.experts.gate_up_proj')).to.equal('mxfp4.w4a16');
    expect(config.schemeOf('model.layers.0.self_attn.q_proj')).to.equal(undefined);
  });
});
