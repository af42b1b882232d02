import type { ActivationSupport, ExpertSupportRule, MoeBackend } from '../backend.js';
import type { Activation, ExpertGroupSpec } from '../layer-spec.js';
import { deviceRefusal } from '../oracle/dimensions.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { expertsCases, qualityCases, variationCases } from './cases.js';
import type { ExpertsCase, LayerVariant } from './cases.js';
import { openExpertsSubject, randomCall } from './experts-subject.js';
import { expertGroup } from './layers.js';
import type { RoutingPattern } from './layers.js';
import { Random } from '../random.js';
import { declare, declareSkipFaults, once, skipReason } from './runner.js';
import { clampTo, sizeFor } from './sizes.js';
import type { Subject } from './subject.js';
import { checkCall, declareQualityCases, suiteContext } from './suite.js';
import type { ConformanceOptions, SuiteContext } from './suite.js';

export interface MoeConformanceOptions<S extends SchemeKey> extends ConformanceOptions {
  readonly create: () => MoeBackend<S>;
}

/**
 * Declares the tests that every backend for experts passes: each rule that the device at hand can run, with each scheme, activation,
 * bias and mixture that the rule lists, is packed, run and held against the reference of the arithmetic that the rule declares.
 *
 * ```ts
 * describeMoeBackend({ name: 'b12x', create: () => new B12xBackend(), device, runExperts });
 * ```
 */
export function describeMoeBackend<S extends SchemeKey>(options: MoeConformanceOptions<S>): void {
  const context = suiteContext(options);
  // The suite hands every rule the schemes that it lists, and checks by brand: that is the narrowing the type parameter stands for.
  const backend = options.create() as unknown as MoeBackend;
  const caseIds = [...expertsCases, ...variationCases, ...qualityCases].map(({ id }) => id);
  const ruleIds = backend.rules.map(({ id }) => id);
  const { runner } = context;
  runner.describe(`MoeBackend ${options.name}`, () => {
    declareSkipFaults(runner, context.skips, caseIds, ruleIds);
    runner.it('names its rules once, and has one for this device', () => {
      const doubles = ruleIds.filter((id, i) => ruleIds.indexOf(id) !== i);
      if (doubles.length > 0) return Promise.reject(new Error(`Rule ids are not unique: ${doubles.join(', ')}.`));
      if (backend.rules.some((rule) => deviceRefusal(options.device, rule.device) === undefined)) return Promise.resolve();
      return Promise.reject(new Error(`No rule covers the device at hand, ${options.device.name}: there is nothing to judge.`));
    });
    for (const rule of backend.rules) describeRule(context, backend, rule);
  });
}

function describeRule(context: SuiteContext, backend: MoeBackend, rule: ExpertSupportRule): void {
  const { runner, options } = context;
  runner.describe(`rule ${rule.id}`, () => {
    const unusable = deviceRefusal(options.device, rule.device)?.message ?? backend.missing?.(rule);
    if (unusable !== undefined) {
      declare(runner, 'runs on this device', unusable, () => Promise.resolve());
      return;
    }
    for (const layer of layersOf(rule)) describeLayer(context, backend, rule, layer);
  });
}

/** What a layer of a rule is, apart from its sizes. */
interface LayerKind {
  readonly title: string;
  readonly w13: SchemeKey;
  readonly w2: SchemeKey;
  readonly activation: Activation;
  readonly hasBias: boolean;
  /** The first kind of every scheme gets all cases, the others only {@link variationCases}. */
  readonly isMain: boolean;
}

function layersOf(rule: ExpertSupportRule): LayerKind[] {
  const activations = rule.activations.flatMap(activationsOf);
  const biases = rule.bias === true ? [false, true] : [false];
  const kinds = rule.schemes.flatMap((scheme, s) => {
    const same = activations.flatMap((activation) => biases.map((hasBias) => ({ w13: scheme, w2: scheme, activation, hasBias })));
    const next = rule.schemes[(s + 1) % rule.schemes.length] ?? scheme;
    const isMixed = rule.mixedProjections === true && next !== scheme && same[0] !== undefined;
    return (
      isMixed
        ? [...same, { ...same[0], w13: scheme, w2: next, activation: activations[0] ?? { type: 'silu' as const }, hasBias: false }]
        : same
    ).map((kind, i) => ({ ...kind, isMain: i === 0 }));
  });
  return kinds.map((kind) => ({ ...kind, title: titleOf(kind) }));
}

function titleOf({ w13, w2, activation, hasBias }: Omit<LayerKind, 'title'>): string {
  const scheme = w13 === w2 ? w13 : `${w13} with ${w2} down projection`;
  const parameters = activation.type === 'swiglu' ? `(${String(activation.alpha)}, ${String(activation.limit)})` : '';
  return `${scheme}, ${activation.type}${parameters}${hasBias ? ', bias' : ''}`;
}

/** The parameters of gpt-oss, moved into the intervals that the rule allows, and the ends of those intervals. */
function activationsOf(support: ActivationSupport): Activation[] {
  if (support.type === 'silu') return [{ type: 'silu' }];
  const { alpha, limit } = support;
  const pairs = [
    [clampTo(alpha, 1.702), clampTo(limit, 7)],
    [clampTo(alpha, 1), clampTo(limit, 1.5)],
  ] as const;
  const distinct = pairs.filter(([a, l], i) => pairs.findIndex(([b, m]) => a === b && l === m) === i);
  return distinct.map(([a, l]) => ({ type: 'swiglu', alpha: a, limit: l }));
}

function describeLayer(context: SuiteContext, backend: MoeBackend, rule: ExpertSupportRule, kind: LayerKind): void {
  const { runner, options, seed } = context;
  runner.describe(kind.title, () => {
    const opened: Subject[] = [];
    const open = (variant: LayerVariant): { readonly refusal: string | undefined; readonly subject: () => Promise<Subject> } => {
      const group = groupFor(rule, kind, variant);
      if (group === undefined) return { refusal: 'the rule allows no such size', subject: () => Promise.reject(new Error('no such size')) };
      return {
        refusal: backend.refuse?.(group, rule, options.device)?.message,
        subject: once(async () => {
          const subject = await openExpertsSubject(context, backend, rule, group);
          opened.push(subject);
          return subject;
        }),
      };
    };
    const layers = { usual: open('usual'), smallest: open('smallest'), 'odd-multiples': open('odd-multiples'), subset: open('subset') };
    const cases: readonly ExpertsCase[] = kind.isMain ? expertsCases : variationCases;
    cases.forEach(({ id, title, variant, numTokens, routing, accumulate }, index) => {
      const { refusal, subject } = layers[variant];
      declare(runner, title, skipReason(context.skips, id, rule.id) ?? refusal, async () => {
        const random = new Random(seed).fork(index);
        for (const count of new Set(numTokens.map((wanted) => clampTo(rule.tokens, wanted)))) {
          const ready = await subject();
          await checkCall(ready, expertsCall(rule, kind, ready, count, routing, random), accumulate, random);
        }
      });
    });
    if (kind.isMain && layers.usual.refusal === undefined) {
      declareQualityCases(context, {
        ruleId: rule.id,
        rule,
        scheme: kind.w13,
        isStorable: backend.storage !== undefined,
        open: layers.usual.subject,
        makeCall: (subject, numTokens, random) => expertsCall(rule, kind, subject, numTokens, 'spread', random),
        clampTokens: (numTokens) => clampTo(rule.tokens, numTokens),
      });
    }
    runner.after?.(() => {
      for (const { kernel, packed } of opened) {
        kernel.dispose();
        packed.dispose();
      }
    });
  });
}

function expertsCall(
  rule: ExpertSupportRule,
  kind: LayerKind,
  subject: Subject,
  numTokens: number,
  routing: RoutingPattern,
  random: Random,
): ReturnType<typeof randomCall> {
  // Clamps only show where activations are large.
  const amplitude = kind.activation.type === 'swiglu' ? 4 : 1;
  return randomCall(subject, { numTokens, routing, amplitude, topK: topKOf(rule), numSlots: numExpertsOf(rule) }, random);
}

function numExpertsOf(rule: ExpertSupportRule): number {
  return clampTo(rule.numExperts, 6);
}

function topKOf(rule: ExpertSupportRule): number {
  return clampTo(rule.topK, 2);
}

/** The layer of a kind in a variant of size; undefined when the rule allows none. */
function groupFor(rule: ExpertSupportRule, kind: LayerKind, variant: LayerVariant): ExpertGroupSpec | undefined {
  const hiddenSize = sizeFor(variant, rule.sizes.hiddenSize, kind.w13, 160, 3);
  const moeIntermediateSize = sizeFor(variant, rule.sizes.moeIntermediateSize, kind.w2, 144, 5);
  if (hiddenSize === undefined || moeIntermediateSize === undefined) return undefined;
  return expertGroup({
    w13: kind.w13,
    w2: kind.w2,
    hiddenSize,
    moeIntermediateSize,
    numExperts: numExpertsOf(rule),
    topK: topKOf(rule),
    activation: kind.activation,
    hasBias: kind.hasBias,
    isSubset: variant === 'subset',
  });
}
