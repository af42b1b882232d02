import { expect } from 'chai';
import fc from 'fast-check';
import type { ExpertSupportRule, Multiple, Range } from '../../src/backend.js';
import type { CudaDeviceInfo } from '../../src/device-info.js';
import type { ExpertGroupSpec } from '../../src/layer-spec.js';
import { plan } from '../../src/oracle/plan.js';
import type { Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import type { Preference } from '../../src/oracle/preferences.js';
import type { SchemeKey } from '../../src/quant/quant-scheme.js';
import { asScheme, expertGroup, expertRule, moeBackend, registered } from './declared-backends.js';

const schemes: readonly SchemeKey[] = [
  'nvfp4.w4a4',
  'nvfp4.w4a16',
  'fp8.tensor.static',
  'fp8.channel',
  'fp8.block128',
  'mxfp4.w4a16',
  'bf16',
];
const names = ['alpha', 'beta', 'gamma', 'fp4only'];
const maxNumTokens = 512;

const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
/** The neutral value mostly: layers and rules that differ in everything would never meet. */
const mostly = <T>(neutral: T, ...others: readonly T[]) =>
  fc.oneof({ weight: 8, arbitrary: fc.constant(neutral) }, { weight: 2, arbitrary: fc.constantFrom(...others) });

const group: fc.Arbitrary<Omit<ExpertGroupSpec, 'name' | 'layerIndex'>> = fc
  .record({
    w13: fc.constantFrom(...schemes),
    w2: mostly<SchemeKey | undefined>(undefined, ...schemes),
    hiddenSize: mostly(2048, 256, 2880, 96, NaN),
    moeIntermediateSize: mostly(768, 160, 256),
    numExperts: mostly(8, 128, 640),
    topK: mostly(2, 1, 8),
    activation: mostly<ExpertGroupSpec['activation']>(
      { type: 'silu' },
      { type: 'swiglu', alpha: 1.702, limit: 7 },
      { type: 'other', name: 'situ' },
    ),
    hasBias: mostly(false, true),
    tpSize: mostly(1, 2),
    epSize: mostly(1, 2),
    role: fc.constantFrom<ExpertGroupSpec['role']>('target', 'draft'),
  })
  .map(({ w13, w2, tpSize, epSize, ...rest }) => ({
    ...expertGroup(0, w13, rest),
    // Most groups have one scheme.
    schemes: { w13, w2: w2 ?? w13 },
    parallel: { tpRank: 0, tpSize, epRank: 0, epSize },
  }));

const layerSet = fc
  .array(group, { minLength: 1, maxLength: 6 })
  .map((groups) =>
    groups.map((spec, index): ExpertGroupSpec => ({ ...spec, layerIndex: index, name: `model.layers.${index}.mlp.experts` })),
  );

function ruleOf(layoutOwner: string, allowed: readonly SchemeKey[]): fc.Arbitrary<Omit<ExpertSupportRule, 'id'>> {
  return fc
    .record({
      schemes: fc.uniqueArray(fc.constantFrom(...allowed), { minLength: 1, maxLength: 4 }),
      sm: fc.constantFrom<readonly number[] | Range>({ min: 80 }, [120, 121], { min: 89, max: 109 }, {}),
      swiglu: fc.boolean(),
      hidden: fc.constantFrom<Multiple>({ multipleOf: 1 }, { multipleOf: 128 }, { multipleOf: 1, max: 2048 }),
      intermediate: fc.constantFrom<Multiple>({ multipleOf: 1 }, { multipleOf: 64 }, { multipleOf: 256, min: 256 }),
      numExperts: fc.constantFrom<Range>({}, { max: 512 }),
      topK: fc.constantFrom<Range>({}, { max: 4 }),
      tokens: fc.constantFrom<Range>({}, {}, {}, { max: 64 }, { min: 33 }, { max: 256 }, { min: 20, max: 300 }, { min: 200 }),
      isExact: fc.boolean(),
      parallel: optional(fc.constantFrom<readonly ('tp' | 'ep')[]>(['tp'], ['tp', 'ep'], [])),
      bias: optional(fc.boolean()),
      mixedProjections: optional(fc.boolean()),
      batchInvariant: optional(fc.boolean()),
      onlyWhenNamed: mostly<string | undefined>(undefined, 'It is slow.'),
      layout: fc.constantFrom('rows', 'tiles'),
    })
    .map(
      ({
        sm,
        swiglu,
        hidden,
        intermediate,
        isExact,
        parallel,
        bias,
        mixedProjections,
        batchInvariant,
        onlyWhenNamed,
        layout,
        ...rest
      }) => ({
        ...expertRule('', rest.schemes),
        ...rest,
        device: { type: 'cuda' as const, sm },
        activations: swiglu
          ? [{ type: 'silu' as const }, { type: 'swiglu' as const, alpha: {}, limit: { min: 1 } }]
          : [{ type: 'silu' as const }],
        sizes: { hiddenSize: hidden, moeIntermediateSize: intermediate },
        arithmetic: isExact ? asScheme : expertRule('', rest.schemes).arithmetic,
        layout: `${layoutOwner}/${layout}@1`,
        ...(parallel === undefined ? {} : { parallel }),
        ...(bias === undefined ? {} : { bias }),
        ...(mixedProjections === undefined ? {} : { mixedProjections }),
        ...(batchInvariant === undefined ? {} : { batchInvariant }),
        ...(onlyWhenNamed === undefined ? {} : { onlyWhenNamed }),
      }),
    );
}

interface Declared {
  readonly name: string;
  readonly priority: number;
  readonly rules: readonly ExpertSupportRule[];
  readonly residentBytes: number;
  readonly preparePeakBytes: number;
}

const backend = (name: string): fc.Arbitrary<Declared> =>
  fc.record({
    name: fc.constant(name),
    // The FP4-only one outranks everybody.
    priority: name === 'fp4only' ? fc.constant(1000) : fc.integer({ min: 0, max: 3 }),
    rules: fc
      .array(ruleOf(name, name === 'fp4only' ? ['nvfp4.w4a4', 'nvfp4.w4a16'] : schemes), { minLength: 1, maxLength: 3 })
      .map((rules) => rules.map((rule, index) => ({ ...rule, id: `r${index}` }))),
    residentBytes: fc.constantFrom(10, 20, 40),
    preparePeakBytes: fc.constantFrom(1, 15, 60),
  });

const backends = fc.tuple(...names.map(backend));

const preference: fc.Arbitrary<Preference> = fc
  .record({
    effect: mostly<Preference['effect']>('prefer', 'require', 'forbid'),
    backend: fc.constantFrom(...names, 'absent'),
    family: mostly<string | undefined>(undefined, 'fp8', 'nvfp4'),
    layers: mostly<string | undefined>(undefined, 'model.layers.0.*', '*.experts', 'nothing'),
    role: mostly<ExpertGroupSpec['role'] | undefined>(undefined, 'target', 'draft'),
    source: fc.constantFrom<Preference['source']['type']>('flag', 'environment', 'file'),
  })
  .map(({ effect, backend: name, source, family, layers, role }) => ({
    effect,
    backend: name,
    scope: {
      ...(family === undefined ? {} : { family }),
      ...(layers === undefined ? {} : { layers }),
      ...(role === undefined ? {} : { role }),
    },
    source: { type: source, text: `${source} says ${name}` },
  }));

const device = fc
  .constantFrom(80, 90, 120, 121)
  .map((sm): CudaDeviceInfo => ({ type: 'cuda', name: 'some GPU', sm, memoryBytes: undefined }));

const scenario = fc.record({
  layers: layerSet,
  declared: backends,
  preferences: fc.array(preference, { maxLength: 4 }),
  device,
  batchInvariant: mostly(false, true),
  numerics: mostly<'auto' | 'same' | 'wider'>('auto', 'same', 'wider'),
  memoryBytes: optional(fc.constantFrom(30, 60, 120, 1000)),
});

interface Scenario {
  readonly layers: readonly ExpertGroupSpec[];
  readonly declared: readonly Declared[];
  readonly preferences: readonly Preference[];
  readonly device: CudaDeviceInfo;
  readonly batchInvariant: boolean;
  readonly numerics: 'auto' | 'same' | 'wider';
  readonly memoryBytes: number | undefined;
}

function planOf({ layers, declared, preferences, device: on, batchInvariant, numerics, memoryBytes }: Scenario): Plan {
  const request: PlanRequest = {
    layers,
    device: on,
    moeBackends: declared.flatMap(({ name, priority, rules, residentBytes, preparePeakBytes }) =>
      registered(moeBackend(name, priority, rules, { footprint: () => ({ residentBytes, preparePeakBytes, workspaceBytes: () => 1 }) })),
    ),
    linearBackends: [],
    maxNumTokens,
    preferences,
    requirements: { batchInvariant },
    numerics: { default: numerics },
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
  };
  return plan(request);
}

/** Written from the contract's comments, sharing no code with the oracle: does the rule cover the group for calls of these sizes? */
function covers(
  rule: ExpertSupportRule,
  spec: ExpertGroupSpec,
  on: CudaDeviceInfo,
  batchInvariant: boolean,
  min: number,
  max: number,
): boolean {
  const within = (value: number, range: Range) => value >= (range.min ?? -Infinity) && value <= (range.max ?? Infinity);
  const sizeFits = (value: number, size: Multiple) =>
    Number.isInteger(value) && value > 0 && value % size.multipleOf === 0 && within(value, size);
  const groupColumns: Partial<Record<string, number>> = { 'nvfp4.w4a4': 16, 'nvfp4.w4a16': 16, 'mxfp4.w4a16': 32 };
  if (rule.device.type !== 'cuda') return false;
  const { sm } = rule.device;
  const { activation, parallel } = spec;
  return [
    rule.schemes.includes(spec.schemes.w13),
    rule.schemes.includes(spec.schemes.w2),
    spec.schemes.w13 === spec.schemes.w2 || rule.mixedProjections === true,
    'length' in sm ? sm.includes(on.sm) : within(on.sm, sm),
    rule.activations.some((one) =>
      one.type === 'silu'
        ? activation.type === 'silu'
        : activation.type === 'swiglu' && within(activation.alpha, one.alpha) && within(activation.limit, one.limit),
    ),
    sizeFits(spec.hiddenSize, rule.sizes.hiddenSize),
    sizeFits(spec.moeIntermediateSize, rule.sizes.moeIntermediateSize),
    spec.hiddenSize % (groupColumns[spec.schemes.w13] ?? 1) === 0,
    spec.moeIntermediateSize % (groupColumns[spec.schemes.w2] ?? 1) === 0,
    within(spec.experts.length, rule.numExperts),
    within(spec.topK, rule.topK),
    !spec.hasBias || rule.bias === true,
    parallel.tpSize === 1 || rule.parallel?.includes('tp') === true,
    parallel.epSize === 1 || rule.parallel?.includes('ep') === true,
    !batchInvariant || rule.batchInvariant === true,
    within(min, rule.tokens),
    within(max, rule.tokens),
  ].every(Boolean);
}

function inScope(spec: ExpertGroupSpec, { scope }: Preference): boolean {
  const hasFamily =
    scope.family === undefined || [spec.schemes.w13, spec.schemes.w2].some((key) => key.startsWith(`${scope.family ?? ''}.`));
  const hasName =
    scope.layers === undefined || scope.layers === '*.experts' || (scope.layers === 'model.layers.0.*' && spec.layerIndex === 0);
  return hasFamily && hasName && (scope.role === undefined || scope.role === spec.role);
}

function bindingsByLayer(made: Plan): Map<string, Plan['layers'][number]['bindings']> {
  return new Map(made.layers.map(({ name, bindings }) => [name, bindings]));
}

function check(property: (one: Scenario) => void, runs = 150): void {
  fc.assert(fc.property(scenario, property), { numRuns: runs, seed: 20_261_126 });
}

describe('plan, on random layers, rules and preferences', () => {
  it('never binds a group to a rule that does not cover it', () => {
    let numBindings = 0;
    let numFp4 = 0;
    check((one) => {
      const bound = bindingsByLayer(planOf(one));
      for (const spec of one.layers) {
        for (const { backend: name, rule: id, tokens } of bound.get(spec.name) ?? []) {
          numBindings += 1;
          numFp4 += Number(name === 'fp4only');
          const rule = one.declared.find((declared) => declared.name === name)?.rules.find((declared) => declared.id === id);
          if (rule === undefined) throw new Error(`${name}/${id} was never declared`);
          expect(
            covers(rule, spec, one.device, one.batchInvariant, tokens.min, tokens.max),
            `${name}/${id} on ${JSON.stringify(spec)}`,
          ).to.equal(true);
          if (name === 'fp4only') expect([spec.schemes.w13, spec.schemes.w2].every((key) => key.startsWith('nvfp4.'))).to.equal(true);
        }
      }
    }, 400);
    // The property must not hold because nothing was ever bound.
    expect(numBindings).to.be.greaterThan(200);
    expect(numFp4).to.be.greaterThan(20);
  });

  it('covers every call size of a served layer, without gaps and overlaps', () => {
    check((one) => {
      for (const { bindings } of planOf(one).layers) {
        let next = 1;
        for (const { tokens } of bindings) {
          expect(tokens.min).to.equal(next);
          next = tokens.max + 1;
        }
        if (bindings.length > 0) expect(next).to.equal(maxNumTokens + 1);
      }
    });
  });

  it('does not depend on the order of layers, backends and rules', () => {
    fc.assert(
      fc.property(scenario, fc.infiniteStream(fc.integer({ min: 0, max: 1 << 20 })), (one, numbers) => {
        const shuffled = <T>(list: readonly T[]): T[] =>
          list
            .map((value) => ({ value, key: Number(numbers.next().value) }))
            .sort((a, b) => a.key - b.key)
            .map(({ value }) => value);
        const reordered = {
          ...one,
          layers: shuffled(one.layers),
          declared: shuffled(one.declared).map((declared) => ({ ...declared, rules: shuffled(declared.rules) })),
        };
        expect(planOf(reordered)).to.deep.equal(planOf(one));
      }),
      { numRuns: 150, seed: 1 },
    );
  });

  it('never unserves a layer, nor breaks the sum of bytes, by one more backend', () => {
    check((one) => {
      const before = planOf({ ...one, declared: one.declared.filter(({ name }) => name !== 'fp4only') });
      const after = planOf(one);
      const served = new Set(after.layers.filter(({ bindings }) => bindings.length > 0).map(({ name }) => name));
      for (const { name, bindings } of before.layers) if (bindings.length > 0) expect(served.has(name), name).to.equal(true);
      // A layer that is served now where nobody did before takes bytes of its own.
      if (before.bytes.fits && after.unserved.length === before.unserved.length) expect(after.bytes.fits).to.equal(true);
    });
  });

  it('never binds what is forbidden', () => {
    check((one) => {
      const bound = bindingsByLayer(planOf(one));
      for (const spec of one.layers) {
        const forbidden = one.preferences.filter((each) => each.effect === 'forbid' && inScope(spec, each)).map((each) => each.backend);
        for (const { backend: name } of bound.get(spec.name) ?? []) expect(forbidden).not.to.include(name);
      }
    });
  });

  it('never falls back silently from what is required', () => {
    check((one) => {
      const bound = bindingsByLayer(
        planOf({ ...one, preferences: one.preferences.map((each) => (each.effect === 'prefer' ? { ...each, effect: 'require' } : each)) }),
      );
      for (const spec of one.layers) {
        // layer > family > role > all, then flag > environment > file, then as written; each as a digit.
        const weight = ({ scope, source }: Preference) =>
          [scope.layers, scope.family, scope.role].map((part) => (part === undefined ? 0 : 1)).join('') +
          { flag: '2', environment: '1', file: '0' }[source.type];
        const [winner] = one.preferences
          .filter((each) => each.effect !== 'forbid' && inScope(spec, each))
          .sort((a, b) => Number(weight(b)) - Number(weight(a)));
        if (winner === undefined) continue;
        for (const { backend: name } of bound.get(spec.name) ?? []) expect(name).to.equal(winner.backend);
      }
    });
  });

  it('follows a preference wherever the backend covers every call', () => {
    check((one) => {
      const onlyWish: Preference = { effect: 'prefer', backend: 'alpha', scope: {}, source: { type: 'flag', text: '--moe-backend alpha' } };
      const made = planOf({ ...one, preferences: [onlyWish], memoryBytes: undefined });
      for (const layer of made.layers) {
        const canServe = layer.eligible.some(
          ({ backend: name, tokens }) => name === 'alpha' && (tokens.min ?? 1) <= 1 && (tokens.max ?? maxNumTokens) >= maxNumTokens,
        );
        if (canServe) expect(layer.bindings.map((binding) => binding.backend)).to.deep.equal(layer.bindings.map(() => 'alpha'));
        for (const { backend: name, because } of layer.bindings)
          if (name !== 'alpha') expect(because).to.match(/prefers alpha, which does not serve it: .|takes the calls that/);
      }
    });
  });

  it('explains completely: every rule is bound, eligible, or refused with a reason', () => {
    check((one) => {
      const all = one.declared.flatMap(({ name, rules }) => rules.map(({ id }) => `${name}/${id}`)).sort();
      for (const { bindings, eligible, refused } of planOf(one).layers) {
        const told = [
          ...new Set(bindings.map((binding) => `${binding.backend}/${binding.rule}`)),
          ...[...eligible, ...refused].map((each) => `${each.backend}/${each.rule}`),
        ];
        expect(told.sort()).to.deep.equal(all);
        for (const { reasons } of refused) {
          expect(reasons).not.to.have.length(0);
          for (const { message } of reasons) expect(message).to.match(/^.{10,}\.$/);
        }
        for (const { because } of bindings) expect(because).not.to.equal('');
      }
    });
  });
});
