import { expect } from 'chai';
import fc from 'fast-check';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel, knownArchitectures } from '../../src/checkpoint/describe-model.js';
import { locateModule } from '../../src/checkpoint/module-tensors.js';
import type { MoeError } from '../../src/errors.js';
import { isMoeError } from '../../src/errors.js';
import type { Storage, Tensors } from './tiny-models.js';
import { bf16, moduleTensors, removeTensors, tinyQwen3Moe, withCheckpoint } from './tiny-models.js';

interface Model {
  readonly config: Record<string, unknown>;
  readonly tensors: Tensors;
}

async function describeTiny(
  { config, tensors }: Model,
  options: Parameters<typeof describeModel>[1] = {},
): Promise<ReturnType<typeof describeModel>> {
  return withCheckpoint({ config, tensors }, (checkpoint) => describeModel(checkpoint, options));
}

async function refusal(model: Model): Promise<MoeError> {
  return describeTiny(model).then(
    () => expect.fail('the model was accepted'),
    (error: unknown) => {
      if (isMoeError(error)) return error;
      throw error;
    },
  );
}

const modelopt = (quantizedLayers: Record<string, string>): Record<string, unknown> => ({
  quant_method: 'modelopt',
  quant_algo: 'MIXED_PRECISION',
  quantized_layers: Object.fromEntries(Object.entries(quantizedLayers).map(([module, algorithm]) => [module, { quant_algo: algorithm }])),
});

const experts = 'model.layers.0.mlp.experts';

/** The tiny model with experts in NVFP4. */
function nvfp4Experts(): Model {
  const { config, tensors } = tinyQwen3Moe((module) => (module.includes('.experts.') ? 'nvfp4' : 'bf16'));
  return { config: { ...config, quantization_config: modelopt({ [experts]: 'NVFP4' }) }, tensors };
}

describe('describeModel', () => {
  it('fuses q, k and v, and names every module', async () => {
    const { linears, groups } = await describeTiny(tinyQwen3Moe());
    expect(linears.map(({ name }) => name)).to.deep.equal([
      'model.layers.0.self_attn.qkv_proj',
      'model.layers.0.self_attn.o_proj',
      'lm_head',
    ]);
    expect(linears[0]).to.deep.include({ inFeatures: 64, outFeatures: 256, scheme: 'bf16', layerIndex: 0, role: 'target', hasBias: false });
    expect(linears[0]?.modules).to.deep.equal([
      { name: 'model.layers.0.self_attn.q_proj', outFeatures: 128 },
      { name: 'model.layers.0.self_attn.k_proj', outFeatures: 64 },
      { name: 'model.layers.0.self_attn.v_proj', outFeatures: 64 },
    ]);
    expect(groups).to.have.length(1);
    expect(groups[0]).to.deep.include({ name: experts, experts: [0, 1], topK: 1, numExperts: 2, hiddenSize: 64, moeIntermediateSize: 32 });
    expect(groups[0]?.routing).to.deep.include({ score: 'softmax', renormalize: true });
  });

  it('leaves q, k and v apart where one has another scheme', async () => {
    const module = 'model.layers.0.self_attn.v_proj';
    const { config, tensors } = tinyQwen3Moe((name) => (name === module ? 'fp8' : 'bf16'));
    const { linears } = await describeTiny({ config: { ...config, quantization_config: modelopt({ [module]: 'FP8' }) }, tensors });
    expect(linears.slice(0, 3).map(({ name, scheme, outFeatures }) => [name.slice(-6), scheme, outFeatures])).to.deep.equal([
      ['q_proj', 'bf16', 128],
      ['k_proj', 'bf16', 64],
      ['v_proj', 'fp8.tensor.static', 64],
    ]);
  });

  describe('tells linears what the KV cache rounds their keys and values to', () => {
    const fp8Cache = { quantization_config: { ...modelopt({}), kv_cache_quant_algo: 'FP8' } };
    const cached = async (choice: 'auto' | 'bf16' | 'fp8', config: Record<string, unknown>): Promise<unknown> => {
      const tiny = tinyQwen3Moe();
      const { linears, kvCacheDType } = await describeTiny({ ...tiny, config: { ...tiny.config, ...config } }, { kvCache: choice });
      return [kvCacheDType, linears.filter(({ cachedAs }) => cachedAs === 'f8e4m3').map(({ name }) => name)];
    };
    const qkv = ['model.layers.0.self_attn.qkv_proj'];
    for (const [choice, config, expected] of [
      ['auto', {}, ['bf16', []]],
      ['auto', fp8Cache, ['f8e4m3', qkv]],
      ['bf16', fp8Cache, ['bf16', []]],
      ['fp8', {}, ['f8e4m3', qkv]],
    ] as const) {
      it(`under ${choice} where the checkpoint ${config === fp8Cache ? 'was calibrated for FP8' : 'says nothing'}`, async () => {
        expect(await cached(choice, config)).to.deep.equal(expected);
      });
    }

    it('and leaves queries out where they are a linear of their own', async () => {
      const module = 'model.layers.0.self_attn.q_proj';
      const { config, tensors } = tinyQwen3Moe((name) => (name === module ? 'fp8' : 'bf16'));
      const model = { config: { ...config, quantization_config: modelopt({ [module]: 'FP8' }) }, tensors };
      const { linears } = await describeTiny(model, { kvCache: 'fp8' });
      expect(linears.map(({ name, cachedAs }) => [name.split('.').at(-1), cachedAs])).to.deep.equal([
        ['q_proj', undefined],
        ['k_proj', 'f8e4m3'],
        ['v_proj', 'f8e4m3'],
        ['o_proj', undefined],
        ['lm_head', undefined],
      ]);
    });
  });

  it('splits the experts of a layer by scheme, also where only the second projection differs', async () => {
    const storageOf = (module: string): Storage =>
      module.includes('.experts.1.') ? (module.endsWith('down_proj') ? 'fp8' : 'nvfp4') : 'bf16';
    const { config, tensors } = tinyQwen3Moe(storageOf);
    const quantization = modelopt({
      [`${experts}.1.gate_proj`]: 'NVFP4',
      [`${experts}.1.up_proj`]: 'NVFP4',
      [`${experts}.1.down_proj`]: 'FP8',
    });
    const { groups } = await describeTiny({ config: { ...config, quantization_config: quantization }, tensors });
    expect(groups.map(({ name, experts: members, schemes }) => ({ name, members, schemes }))).to.deep.equal([
      { name: `${experts}#bf16`, members: [0], schemes: { w13: 'bf16', w2: 'bf16' } },
      { name: `${experts}#nvfp4.w4a4+fp8.tensor.static`, members: [1], schemes: { w13: 'nvfp4.w4a4', w2: 'fp8.tensor.static' } },
    ]);
  });

  it('refuses an expert whose gate and up differ', async () => {
    const { config, tensors } = tinyQwen3Moe((module) => (module.endsWith('experts.1.gate_proj') ? 'fp8' : 'bf16'));
    const error = await refusal({ config: { ...config, quantization_config: modelopt({ [`${experts}.1.gate_proj`]: 'FP8' }) }, tensors });
    expect(error.code).to.equal('MOE_UNSUPPORTED_QUANTIZATION');
    expect(error.message).to.include(`${experts}.1`).and.to.include('up_proj is bf16');
  });

  it('lets the embedding serve as the head where they are tied', async () => {
    const { config, tensors } = tinyQwen3Moe();
    delete tensors['lm_head.weight'];
    const { linears } = await describeTiny({ config: { ...config, tie_word_embeddings: true }, tensors });
    expect(linears.at(-1)).to.deep.include({ name: 'lm_head', scheme: 'bf16', modules: [{ name: 'model.embed_tokens', outFeatures: 16 }] });
  });

  it('takes a dense layer as a dense MLP', async () => {
    const { config, tensors } = tinyQwen3Moe();
    for (const [name, rows, columns] of [
      ['gate_proj', 48, 64],
      ['up_proj', 48, 64],
      ['down_proj', 64, 48],
    ] as const) {
      tensors[`model.layers.0.mlp.${name}.weight`] = bf16([rows, columns]);
    }
    const { groups, linears } = await describeTiny({ config: { ...config, mlp_only_layers: [0], intermediate_size: 48 }, tensors });
    expect(groups).to.have.length(0);
    expect(linears.map(({ name }) => name)).to.include.members(['model.layers.0.mlp.gate_up_proj', 'model.layers.0.mlp.down_proj']);
  });

  it('takes plain tensors as such where an exclusion would match as a part of the name', async () => {
    const { config, tensors } = tinyQwen3Moe((module) => (module.includes('o_proj') || module === 'lm_head' ? 'bf16' : 'fp8'));
    const quantization = { quant_method: 'modelopt', quant_algo: 'FP8', exclude_modules: ['self_attn.o_proj'] };
    const { linears } = await describeTiny({ config: { ...config, quantization_config: quantization }, tensors });
    expect(linears.map(({ scheme }) => scheme)).to.deep.equal(['fp8.tensor.static', 'bf16', 'bf16']);
  });

  it('takes FP8 with a scale per row for what it is', async () => {
    const { config, tensors } = tinyQwen3Moe((module) => (module.endsWith('o_proj') ? 'fp8-channel' : 'bf16'));
    const quantization = modelopt({ 'model.layers.0.self_attn.o_proj': 'FP8' });
    const { linears } = await describeTiny({ config: { ...config, quantization_config: quantization }, tensors });
    expect(linears[1]?.scheme).to.equal('fp8.channel');
  });

  it('names up to ten tensors that do not fit', async () => {
    const { config, tensors } = tinyQwen3Moe();
    removeTensors(tensors, (name) => name.includes('.experts.1.'));
    tensors['model.layers.0.self_attn.o_proj.weight'] = bf16([64, 64]);
    const error = await refusal({ config, tensors });
    expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
    expect(error.message).to.include('2 tensors').and.to.include('o_proj.weight').and.to.include('[64, 128]').and.to.include('[64, 64]');
    expect(error.message).to.include(`${experts}.1.gate_proj.weight`);
    expect(error.details).to.include({ numProblems: 2, file: 'model.safetensors' });
  });

  it('refuses tensors that the plan cannot know: one expert too many', async () => {
    const { config, tensors } = tinyQwen3Moe();
    Object.assign(tensors, moduleTensors(`${experts}.2.gate_proj`, 'bf16', 32, 64));
    const error = await refusal({ config, tensors });
    expect(error.message).to.include(`${experts}.2.gate_proj.weight`).and.to.include('2 experts');
  });
});

interface Contradiction {
  readonly name: string;
  readonly model: () => Model;
  readonly says: readonly string[];
}

const downProj = `${experts}.1.down_proj`;

const contradictions: readonly Contradiction[] = [
  {
    name: 'FP4 tensors in a module that is not listed',
    model: () => ({ ...nvfp4Experts(), config: tinyQwen3Moe().config }),
    says: [`${experts}.0.gate_proj.weight`, 'U8', 'does not list'],
  },
  {
    name: 'FP8 tensors in a module that is not listed',
    model: () => tinyQwen3Moe((module) => (module.endsWith('o_proj') ? 'fp8' : 'bf16')),
    says: ['o_proj.weight', 'F8_E4M3', 'BF16'],
  },
  {
    name: 'plain tensors in a module that is listed',
    model: () => ({ ...nvfp4Experts(), tensors: tinyQwen3Moe().tensors }),
    says: [`${experts}.0.gate_proj.weight`, 'BF16', 'nvfp4.w4a4'],
  },
  {
    name: 'a missing input scale',
    model: () => {
      const model = nvfp4Experts();
      removeTensors(model.tensors, (tensor) => tensor === `${downProj}.input_scale`);
      return model;
    },
    says: [`${downProj}.input_scale`, 'missing'],
  },
  {
    name: 'a missing global scale',
    model: () => {
      const model = nvfp4Experts();
      removeTensors(model.tensors, (tensor) => tensor === `${downProj}.weight_scale_2`);
      return model;
    },
    says: [`${downProj}.weight_scale_2`, 'missing'],
  },
  {
    name: 'block scales of another shape',
    model: () => {
      const model = nvfp4Experts();
      model.tensors[`${downProj}.weight_scale`] = { dtype: 'F8_E4M3', shape: [64, 1] };
      return model;
    },
    says: [`${downProj}.weight_scale`, '[64, 2]', '[64, 1]'],
  },
  {
    name: 'block scales of another dtype',
    model: () => {
      const model = nvfp4Experts();
      model.tensors[`${downProj}.weight_scale`] = { dtype: 'F32', shape: [64, 2] };
      return model;
    },
    says: [`${downProj}.weight_scale`, 'F8_E4M3', 'F32'],
  },
  {
    name: 'a bias that the configuration does not have',
    model: () => {
      const model = tinyQwen3Moe();
      model.tensors['model.layers.0.self_attn.q_proj.bias'] = bf16([128]);
      return model;
    },
    says: ['q_proj.bias', 'no bias'],
  },
  {
    name: 'no bias where the configuration has one',
    model: () => {
      const model = tinyQwen3Moe();
      return { ...model, config: { ...model.config, attention_bias: true } };
    },
    says: ['q_proj.bias', 'missing'],
  },
];

describe('describeModel, where configuration and tensors contradict each other', () => {
  for (const { name, model, says } of contradictions) {
    it(`refuses ${name}, naming the tensor`, async () => {
      const error = await refusal(model());
      expect(error.code).to.equal('MOE_CHECKPOINT_TENSOR');
      for (const part of says) expect(error.message).to.include(part);
    });
  }

  it('refuses columns that do not divide into groups, naming the tensor', () =>
    withCheckpoint(nvfp4Experts(), (checkpoint) => {
      expect(() => locateModule(checkpoint, downProj, 'nvfp4.w4a4', 64, 24))
        .to.throw(`${downProj}.weight: its 24 columns do not divide into groups of 16`)
        .with.property('code', 'MOE_CHECKPOINT_TENSOR');
    }));
});

const badFields: readonly [string, unknown][] = [
  ['hidden_size', 1e9],
  ['hidden_size', 0],
  ['hidden_size', -64],
  ['hidden_size', 64.5],
  ['hidden_size', '64'],
  ['num_hidden_layers', 1e6],
  ['num_attention_heads', 0],
  ['num_key_value_heads', 3],
  ['head_dim', []],
  ['vocab_size', null],
  ['num_experts', 0],
  ['num_experts', 1e9],
  ['num_experts_per_tok', 3],
  ['num_experts_per_tok', {}],
  ['moe_intermediate_size', true],
  ['norm_topk_prob', 'yes'],
  ['hidden_act', 7],
  ['mlp_only_layers', 'none'],
  ['tie_word_embeddings', 1],
];

describe('describeModel, reading config.json', () => {
  for (const [field, value] of badFields) {
    it(`refuses ${field} ${JSON.stringify(value)}, naming the field`, async () => {
      const { config, tensors } = tinyQwen3Moe();
      const error = await refusal({ config: { ...config, [field]: value }, tensors });
      expect(error.code).to.equal('MOE_CHECKPOINT_CONFIG');
      expect(error.message).to.include('config.json').and.to.include(field).and.to.include('expected');
      expect(error.details).to.include({ file: 'config.json', field });
    });
  }

  it('refuses an unknown architecture, naming those it knows', async () => {
    const { config, tensors } = tinyQwen3Moe();
    const error = await refusal({ config: { ...config, architectures: ['LlamaForCausalLM'] }, tensors });
    expect(error.code).to.equal('MOE_UNSUPPORTED_ARCHITECTURE');
    for (const name of ['LlamaForCausalLM', ...knownArchitectures]) expect(error.message).to.include(name);
  });

  it('goes by model_type where no architecture is named', async () => {
    const { config, tensors } = tinyQwen3Moe();
    expect((await describeTiny({ config: { ...config, architectures: undefined }, tensors })).architecture).to.equal('Qwen3MoeForCausalLM');
  });

  it('passes an activation that it does not know on by its name', async () => {
    const { config, tensors } = tinyQwen3Moe();
    const { groups } = await describeTiny({ config: { ...config, hidden_act: 'relu2' }, tensors });
    expect(groups[0]?.activation).to.deep.equal({ type: 'other', name: 'relu2' });
  });

  it('answers any change of any field with a plan or a MoeError', async () => {
    const { config, tensors } = tinyQwen3Moe();
    await withCheckpoint({ config, tensors }, (checkpoint) => {
      const value = fc.oneof(fc.integer(), fc.double(), fc.string(), fc.boolean(), fc.constant(null), fc.array(fc.nat()), fc.object());
      fc.assert(
        fc.property(
          fc.constantFrom(...Object.keys(config), 'text_config', 'quantization_config', 'layer_types'),
          value,
          (field, changed) => {
            const changedModel = {
              config: { ...config, [field]: changed },
              hfQuantConfig: undefined,
              has: (name: string) => checkpoint.has(name),
              find: (name: string) => checkpoint.find(name),
              tensor: (name: string) => checkpoint.tensor(name),
            } as unknown as Checkpoint;
            try {
              describeModel(changedModel);
            } catch (error) {
              if (!isMoeError(error)) throw error;
            }
          },
        ),
        { seed: 30, numRuns: 500 },
      );
    });
  });
});
