import type { ExpertMatrices, ExpertsArgs, Kernel, LinearArgs, LinearBackend, MoeBackend } from '../../src/backend.js';
import { createReferenceLinearBackend, createReferenceMoeBackend } from '../../src/conformance/index.js';
import { roundToBf16 } from '../../src/quant/bf16.js';
import { SCHEME } from '../../src/quant/quant-scheme.js';
import type { SchemeKey } from '../../src/quant/quant-scheme.js';

/** Backends with one fault each: what the conformance suite must not let through. */

export interface Narrowing {
  readonly schemes: readonly SchemeKey[];
  readonly rule?: 'wide' | 'same';
  readonly bias?: boolean;
}

/** The reference backend with one rule and few schemes, so that a wrong variant of it is judged quickly. */
export function narrowMoe({ schemes, rule = 'wide', bias = false }: Narrowing): MoeBackend {
  const backend = createReferenceMoeBackend();
  const rules = backend.rules
    .filter(({ id }) => id === rule)
    .map((one) => ({ ...one, schemes, bias, activations: [{ type: 'silu' } as const] }));
  return { ...backend, rules };
}

export function narrowLinear({ schemes, rule = 'wide', bias = false }: Narrowing): LinearBackend {
  const backend = createReferenceLinearBackend();
  return { ...backend, rules: backend.rules.filter(({ id }) => id === rule).map((one) => ({ ...one, schemes, bias })) };
}

/** Puts something between the caller and the kernel's function. */
function aroundExperts(backend: MoeBackend, change: (args: ExpertsArgs, run: (args: ExpertsArgs) => void) => void): MoeBackend {
  return {
    ...backend,
    createKernel: async (group, rule, packed, context): Promise<Kernel> => {
      const kernel = await backend.createKernel(group, rule, packed, context);
      const { entry } = kernel;
      if (entry.type !== 'js-experts') throw new Error('the reference backend has JavaScript entries');
      return {
        ...kernel,
        entry: {
          type: 'js-experts',
          run: (args) => {
            change(args, entry.run);
          },
        },
      };
    },
  };
}

function aroundLinear(backend: LinearBackend, change: (args: LinearArgs, run: (args: LinearArgs) => void) => void): LinearBackend {
  return {
    ...backend,
    createKernel: async (linear, rule, packed, context): Promise<Kernel> => {
      const kernel = await backend.createKernel(linear, rule, packed, context);
      const { entry } = kernel;
      if (entry.type !== 'js-linear') throw new Error('the reference backend has JavaScript entries');
      return {
        ...kernel,
        entry: {
          type: 'js-linear',
          run: (args) => {
            change(args, entry.run);
          },
        },
      };
    },
  };
}

/** Packs other weights than it was given; `unpack` gives the true ones all the same, as a backend whose fault is in the kernel would. */
export function packingOther(backend: MoeBackend, change: (expert: ExpertMatrices) => ExpertMatrices): MoeBackend {
  const originals = new WeakMap<object, ExpertMatrices[]>();
  return {
    ...backend,
    pack: async (group, rule, weights, context) => {
      const seen: ExpertMatrices[] = [];
      const packed = await backend.pack(
        group,
        rule,
        {
          numExperts: weights.numExperts,
          expert: async (slot) => {
            const expert = await weights.expert(slot);
            seen[slot] = expert;
            return change(expert);
          },
        },
        context,
      );
      originals.set(packed, seen);
      return packed;
    },
    unpack: (group, packed, slot) => originals.get(packed)?.[slot] ?? backend.unpack(group, packed, slot),
  };
}

/** One fault, and the cases that must see it; cases not listed may or may not. */
export interface WrongMoeBackend {
  readonly fault: string;
  readonly make: () => MoeBackend;
  readonly seenBy: readonly string[];
}

export const wrongMoeBackends: readonly WrongMoeBackend[] = [
  {
    fault: 'swaps gate and up',
    make: () => packingOther(narrowMoe({ schemes: ['bf16'] }), (expert) => ({ ...expert, gate: expert.up, up: expert.gate })),
    seenBy: ['computes one token', 'computes many tokens'],
  },
  {
    fault: 'takes -1 for slot 0',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run({ ...args, topkSlots: args.topkSlots.map((slot) => Math.max(slot, 0)) });
      }),
    seenBy: ['skips slots of -1', 'writes zeros when every slot is -1', 'computes all tokens on one expert'],
  },
  {
    fault: 'overwrites where it should add',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run({ ...args, accumulate: false });
      }),
    seenBy: ['adds to the output when told to', 'leaves rows without experts as they are when adding'],
  },
  {
    fault: 'adds where it should overwrite',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run({ ...args, accumulate: true });
      }),
    seenBy: ['computes one token', 'writes zeros when every slot is -1'],
  },
  {
    fault: 'leaves rows without experts unwritten',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        const before = args.output.slice();
        run(args);
        const width = args.hiddenStates.length / (args.numTokens + 1);
        for (let token = 0; token < args.numTokens; token++) {
          const slots = args.topkSlots.subarray(token * args.topK, (token + 1) * args.topK);
          if (slots.every((slot) => slot < 0)) args.output.set(before.subarray(token * width, (token + 1) * width), token * width);
        }
      }),
    seenBy: ['skips slots of -1', 'writes zeros when every slot is -1'],
  },
  {
    fault: 'counts an expert once that a token lists twice',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        const topkSlots = args.topkSlots.map((slot, i) => (args.topkSlots.subarray(i - (i % args.topK), i).includes(slot) ? -1 : slot));
        run({ ...args, topkSlots });
      }),
    seenBy: ['adds an expert as often as a token lists it'],
  },
  {
    fault: 'drops the biases',
    make: () => packingOther(narrowMoe({ schemes: ['mxfp4.w4a16'], bias: true }), ({ gate, up, down }) => ({ gate, up, down })),
    seenBy: ['mxfp4.w4a16, silu, bias > computes a batch'],
  },
  {
    fault: 'reads the high nibble first',
    make: () =>
      packingOther(narrowMoe({ schemes: ['nvfp4.w4a16'] }), (expert) => {
        const swapped = (matrix: ExpertMatrices['gate']): ExpertMatrices['gate'] =>
          'codes' in matrix ? { ...matrix, codes: matrix.codes.map((byte) => (byte >> 4) | (byte << 4)) } : matrix;
        return { gate: swapped(expert.gate), up: swapped(expert.up), down: swapped(expert.down) };
      }),
    seenBy: ['computes one token', 'computes the smallest sizes that its rule allows'],
  },
  {
    fault: 'leaves inputs unquantized under a rule that quantizes them',
    make: () => {
      const wide = narrowMoe({ schemes: ['nvfp4.w4a4'], rule: 'wide' });
      const { rules } = narrowMoe({ schemes: ['nvfp4.w4a4'], rule: 'same' });
      const [wideRule] = wide.rules;
      if (wideRule === undefined) throw new Error('the reference backend has a rule "wide"');
      return { ...wide, rules, createKernel: (group, _rule, packed, context) => wide.createKernel(group, wideRule, packed, context) };
    },
    seenBy: ['computes one token', 'computes many tokens'],
  },
  {
    fault: 'rounds inputs to bf16 under a rule that says float32',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run({ ...args, hiddenStates: args.hiddenStates.map(roundToBf16) });
      }),
    seenBy: ['computes one token', 'computes many tokens'],
  },
  {
    fault: 'lets the size of the batch change the last bit',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run(args);
        if (args.numTokens > 16) for (let i = 0; i < args.output.length - 160; i++) args.output[i] = (args.output[i] ?? 0) * (1 + 2 ** -22);
      }),
    seenBy: ['gives a row the same bits alone and in a batch'],
  },
  {
    fault: 'carries something from call to call',
    make: () => {
      let calls = 0;
      return aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run(args);
        args.output[0] = (args.output[0] ?? 0) * (1 + ++calls * 2 ** -22);
      });
    },
    seenBy: ['gives the same bits when called twice'],
  },
  {
    fault: 'lets a NaN reach the rows beside it',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run(args);
        const used = args.hiddenStates.subarray(0, args.numTokens * (args.hiddenStates.length / (args.numTokens + 1)));
        if (used.some((value) => Number.isNaN(value))) args.output[0] = NaN;
      }),
    seenBy: ['keeps NaN and infinity within their rows'],
  },
  {
    fault: 'writes past its rows',
    make: () =>
      aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        run(args);
        args.output[args.output.length - 1] = 0;
      }),
    seenBy: ['computes one token'],
  },
  {
    fault: 'states half of the bytes that it takes',
    make: () => {
      const backend = narrowMoe({ schemes: ['bf16'] });
      return {
        ...backend,
        footprint: (group, rule) => ({
          ...backend.footprint(group, rule),
          residentBytes: backend.footprint(group, rule).residentBytes / 2,
        }),
      };
    },
    seenBy: ['states the bytes that it takes, within 5 %'],
  },
  {
    fault: 'states too few bytes in both places',
    make: () => {
      const backend = narrowMoe({ schemes: ['bf16'] });
      return {
        ...backend,
        footprint: (group, rule) => ({ ...backend.footprint(group, rule), residentBytes: 1000 }),
        pack: async (...args) => ({ ...(await backend.pack(...args)), residentBytes: 1000 }),
      };
    },
    seenBy: ['states the bytes that it takes, within 5 %'],
  },
  {
    fault: 'unpacks -0 as 0',
    make: () => {
      const backend = narrowMoe({ schemes: ['nvfp4.w4a16'] });
      return {
        ...backend,
        unpack: (group, packed, slot) => {
          const expert = backend.unpack(group, packed, slot);
          const { gate } = expert;
          return 'codes' in gate
            ? { ...expert, gate: { ...gate, codes: gate.codes.map((byte) => ((byte & 15) === 8 ? byte & 0xf0 : byte)) } }
            : expert;
        },
      };
    },
    seenBy: ['gives the weights back bit for bit'],
  },
  {
    fault: 'brands its weights with another scheme',
    make: () => {
      const backend = narrowMoe({ schemes: ['bf16'] });
      return { ...backend, pack: async (...args) => ({ ...(await backend.pack(...args)), [SCHEME]: ['f16'] }) };
    },
    seenBy: ['brands what it packs with its schemes and its layout'],
  },
  {
    fault: 'takes its weights along when a kernel is disposed',
    make: () => {
      let isDisposed = false;
      const backend = aroundExperts(narrowMoe({ schemes: ['bf16'] }), (args, run) => {
        if (isDisposed) args.output.fill(0);
        else run(args);
      });
      return {
        ...backend,
        createKernel: async (...args) => ({
          ...(await backend.createKernel(...args)),
          dispose: () => {
            isDisposed = true;
          },
        }),
      };
    },
    seenBy: ['survives the disposal of another kernel on the same weights'],
  },
];

/** As {@link WrongMoeBackend}. */
export interface WrongLinearBackend {
  readonly fault: string;
  readonly make: () => LinearBackend;
  readonly seenBy: readonly string[];
}

export const wrongLinearBackends: readonly WrongLinearBackend[] = [
  {
    fault: 'uses the input scale of the first fused module for all',
    make: () => {
      const backend = narrowLinear({ schemes: ['nvfp4.w4a4'], rule: 'same' });
      return {
        ...backend,
        pack: (linear, rule, weights, context) =>
          backend.pack(
            linear,
            rule,
            {
              numModules: weights.numModules,
              module: async (index) => {
                const [first, module] = await Promise.all([weights.module(0), weights.module(index)]);
                const inputScale = 'inputScale' in first.matrix ? first.matrix.inputScale : undefined;
                return { ...module, matrix: { ...module.matrix, inputScale } as typeof module.matrix };
              },
            },
            context,
          ),
      };
    },
    seenBy: ['keeps the scales of each fused module', 'gives the weights back bit for bit'],
  },
  {
    fault: 'overwrites where it should add',
    make: () =>
      aroundLinear(narrowLinear({ schemes: ['bf16'] }), (args, run) => {
        run({ ...args, accumulate: false });
      }),
    seenBy: ['adds to the output when told to'],
  },
  {
    fault: 'drops the bias',
    make: () => {
      const backend = narrowLinear({ schemes: ['bf16'], bias: true });
      return {
        ...backend,
        pack: (linear, rule, weights, context) =>
          backend.pack(
            linear,
            rule,
            { numModules: weights.numModules, module: async (index) => ({ ...(await weights.module(index)), bias: undefined }) },
            context,
          ),
      };
    },
    seenBy: ['bf16, bias > computes one token', 'bf16, bias > keeps the scales of each fused module'],
  },
  {
    fault: 'scales all rows by the largest of the batch',
    make: () => {
      const backend = narrowLinear({ schemes: ['fp8.channel'], rule: 'same' });
      const tensor = { type: 'own', quantization: { type: 'fp8', granularity: 'tensor', scale: 'dynamic' } } as const;
      return {
        ...backend,
        createKernel: (linear, rule, packed, context) =>
          backend.createKernel(linear, { ...rule, arithmetic: { ...rule.arithmetic, input: tensor } }, packed, context),
      };
    },
    seenBy: ['gives a row the same bits alone and in a batch', 'computes many tokens'],
  },
];
