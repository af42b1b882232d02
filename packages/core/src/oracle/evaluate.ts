import type { NumericsClass } from '../arithmetic.js';
import type { Footprint, Refusal, SupportRule } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import { messageOf } from '../errors.js';
import type { LayerSpec } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { deviceRefusal, flagRefusal, refusal, schemeRefusal, tokensRefusal } from './dimensions.js';
import type { ErasedBackend } from './erased-backend.js';
import { layerClassOf, measuredCosts, rankRules, ruleName } from './evidence.js';
import type { LayerKind } from './layer-kind.js';
import { numericsOf, numericsRefusal } from './numerics.js';
import { compareText } from './order.js';
import type { CandidateInfo, Evidence, LayerBytes, NarrowedCandidates, NumericsPolicy, Requirements, RuleRefusal } from './plan-types.js';
import { describeSource, type PreferenceChain } from './preferences.js';

/** What a layer's evaluation depends on besides the layer. */
export interface EvaluationContext {
  readonly device: DeviceInfo;
  readonly maxNumTokens: number;
  readonly requirements: Requirements;
  readonly numerics: NumericsPolicy;
  readonly assumeBuilt: boolean;
  readonly evidence: Evidence;
}

type Rules = SupportRule<SchemeKey>;

/** A rule that covers the layer, with all that choosing needs. */
export interface Candidate<Spec extends LayerSpec, Rule extends Rules> extends CandidateInfo {
  readonly erased: ErasedBackend<Spec, Rule>;
  readonly supportRule: Rule;
  /** Tokens of one call, within 1..maxNumTokens. */
  readonly min: number;
  readonly max: number;
  /** Position of the first preference that names the backend; Infinity = nobody did. */
  readonly wish: number;
  readonly packer: Packer<Spec, Rule>;
  readonly footprint: Footprint;
}

/** Who brings the weights into the layout, by which of its rules. */
export interface Packer<Spec extends LayerSpec, Rule extends Rules> {
  readonly erased: ErasedBackend<Spec, Rule>;
  readonly rule: Rule;
}

export interface Evaluation<Spec extends LayerSpec, Rule extends Rules> {
  /** Best first. */
  readonly candidates: readonly Candidate<Spec, Rule>[];
  /** In the order of backend and rule. */
  readonly refused: readonly RuleRefusal[];
}

/** Asks every rule of every backend on every dimension. @param registry - sorted by name. */
export function evaluate<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  spec: Spec,
  registry: readonly ErasedBackend<Spec, Rule>[],
  chain: PreferenceChain,
  context: EvaluationContext,
): Evaluation<Spec, Rule> {
  const candidates: Candidate<Spec, Rule>[] = [];
  const refused: RuleRefusal[] = [];
  for (const backend of registry) {
    for (const rule of backend.rules) {
      const reasons = [
        ...coverageRefusals(kind, spec, backend, rule, context),
        ...policyRefusals(kind, spec, registry, backend, rule, chain, context),
      ];
      const covered = reasons.length === 0 ? candidate(kind, spec, registry, backend, rule, chain, context) : { reasons };
      if ('reasons' in covered) refused.push({ backend: backend.name, rule: rule.id, reasons: covered.reasons });
      else candidates.push(covered);
    }
  }
  return { candidates: rankRules(withMeasurements(candidates, spec, context)), refused: sortRefusals(refused) };
}

/**
 * Whether the rule and the backend's own `refuse` cover the layer: what must hold again when weights are handed over, whatever the plan said.
 */
export function coverageRefusals<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  spec: Spec,
  backend: ErasedBackend<Spec, Rule>,
  rule: Rule,
  context: Pick<EvaluationContext, 'device' | 'maxNumTokens' | 'requirements'>,
): Refusal[] {
  const { device, requirements, maxNumTokens } = context;
  const refusals = [
    schemeRefusal(kind.schemes(spec), rule.schemes),
    deviceRefusal(device, rule.device),
    ...kind.refusals(spec, rule),
    tokensRefusal(maxNumTokens, rule.tokens),
    flagRefusal('batchInvariant', requirements.batchInvariant ?? false, rule.batchInvariant, 'batch invariance, which was asked for'),
    flagRefusal('graphCapture', requirements.graphCapture ?? false, rule.graphCapture, 'graph capture, which was asked for'),
  ].filter((one) => one !== undefined);
  const own = attempt(() => backend.refuse(spec, rule.id, device));
  // What the backend says about layers that its rule does not cover is kept when it says something; that it threw is not.
  if ('fault' in own)
    return refusals.length > 0 ? refusals : [refusal('backend', `its refuse() failed: ${own.fault}`, undefined, undefined)];
  if (own.value === undefined) return refusals;
  const isSentence = typeof (own.value as Refusal | null)?.message === 'string';
  return [...refusals, isSentence ? own.value : refusal('backend', 'its refuse() said no without a reason', undefined, undefined)];
}

/** What the rules say is settled; these are the wishes of people and the state of the installation. */
function policyRefusals<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  spec: Spec,
  registry: readonly ErasedBackend<Spec, Rule>[],
  backend: ErasedBackend<Spec, Rule>,
  rule: Rule,
  { wishes, forbids }: PreferenceChain,
  { numerics, assumeBuilt, evidence }: EvaluationContext,
): Refusal[] {
  const refusals: Refusal[] = [];
  const { name } = backend;
  const schemes = kind.schemes(spec);
  const numericsFault = numericsRefusal(schemes, rule.arithmetic, numerics);
  if (numericsFault !== undefined) refusals.push(numericsFault);

  for (const forbid of forbids) {
    if (forbid.backend === name) refusals.push(refusal('preference', `${describeSource(forbid.source)} forbids it here`, forbid, name));
  }
  const last = wishes[wishes.length - 1];
  const isNamed = wishes.some((wish) => wish.backend === name);
  if (last?.effect === 'require' && !isNamed) {
    const absent = registry.some((one) => one.name === last.backend) ? '' : ', which is not installed for this kind of layer';
    refusals.push(refusal('preference', `${describeSource(last.source)} requires ${last.backend} here${absent}`, last, name));
  }
  if (rule.onlyWhenNamed !== undefined && !isNamed) {
    refusals.push(refusal('onlyWhenNamed', `it is used only when somebody names ${name}: ${withoutStop(rule.onlyWhenNamed)}`, name, null));
  }
  const quarantined = evidence.quarantined ?? [];
  const layerClass = quarantined.length > 0 ? layerClassOf(spec) : undefined;
  for (const entry of quarantined) {
    const isMeant =
      entry.backend === name &&
      (entry.rule ?? rule.id) === rule.id &&
      (entry.kind ?? spec.kind) === spec.kind &&
      (entry.layerClass ?? layerClass) === layerClass &&
      (entry.scheme === undefined || schemes.some((scheme) => scheme === entry.scheme));
    if (isMeant) refusals.push(refusal('quarantined', `it is quarantined: ${withoutStop(entry.reason)}`, undefined, entry.reason));
  }
  const missing = missingKernel(backend, rule);
  if (missing !== undefined && !assumeBuilt)
    refusals.push(refusal('notBuilt', `its kernel is not built here: ${withoutStop(missing)}`, true, false));
  return refusals;
}

/** The sentence that says what is missing, or undefined when the kernels of the rule are there. */
export function missingKernel<Spec extends LayerSpec, Rule extends Rules>(
  backend: ErasedBackend<Spec, Rule>,
  rule: Rule,
): string | undefined {
  const answer = attempt(() => backend.missing(rule.id));
  return 'fault' in answer ? `missing() failed: ${answer.fault}` : answer.value;
}

/**
 * The backend and rule that pack weights into `rule.layout`: the rule itself, or where the layout belongs to another backend, the owner's
 * first rule with this layout that covers the layer. `undefined` when there is none.
 */
export function findPacker<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  spec: Spec,
  registry: readonly ErasedBackend<Spec, Rule>[],
  backend: ErasedBackend<Spec, Rule>,
  rule: Rule,
  context: Pick<EvaluationContext, 'device' | 'maxNumTokens'>,
): Packer<Spec, Rule> | undefined {
  const owner = layoutOwner(rule.layout);
  if (owner === backend.name) return { erased: backend, rule };
  const erased = registry.find((one) => one.name === owner);
  const candidates = [...(erased?.rules ?? [])].sort((a, b) => compareText(a.id, b.id));
  const packing = candidates.find(
    // How many tokens a call brings and what is asked of kernels does not matter for packing.
    (one) =>
      erased !== undefined &&
      one.layout === rule.layout &&
      coverageRefusals(kind, spec, erased, one, { ...context, maxNumTokens: Infinity, requirements: {} }).length === 0,
  );
  return erased === undefined || packing === undefined ? undefined : { erased, rule: packing };
}

function candidate<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  spec: Spec,
  registry: readonly ErasedBackend<Spec, Rule>[],
  erased: ErasedBackend<Spec, Rule>,
  supportRule: Rule,
  { wishes }: PreferenceChain,
  context: EvaluationContext,
): Candidate<Spec, Rule> | { readonly reasons: readonly Refusal[] } {
  const packer = findPacker(kind, spec, registry, erased, supportRule, context);
  if (packer === undefined) {
    const owner = layoutOwner(supportRule.layout);
    const state = registry.some(({ name }) => name === owner) ? 'does not cover this layer' : 'is not installed';
    return {
      reasons: [
        refusal(
          'layout',
          `it reads the layout ${supportRule.layout}, which ${owner} packs, and ${owner} ${state}`,
          supportRule.layout,
          null,
        ),
      ],
    };
  }
  const priority = attempt(() => erased.priority(spec, supportRule.id, context.device));
  if ('fault' in priority) return { reasons: [refusal('backend', `its priority() failed: ${priority.fault}`, undefined, undefined)] };
  if (!Number.isFinite(priority.value))
    return { reasons: [refusal('backend', 'its priority() is not a number', 'a number', String(priority.value))] };
  const footprint = footprintOf(packer, erased, supportRule, spec, context.maxNumTokens);
  if ('fault' in footprint) return { reasons: [refusal('bytes', `its footprint is not known: ${footprint.fault}`, undefined, undefined)] };
  const wish = wishes.findIndex((one) => one.backend === erased.name);
  // Schemes are defined here: an undefined one was refused before.
  const numerics: NumericsClass = numericsOf(kind.schemes(spec), supportRule.arithmetic) ?? 'approximate';
  return {
    backend: erased.name,
    rule: supportRule.id,
    numerics,
    priority: priority.value,
    built: missingKernel(erased, supportRule) === undefined,
    erased,
    supportRule,
    min: Math.max(1, supportRule.tokens.min ?? 1),
    max: Math.min(context.maxNumTokens, supportRule.tokens.max ?? Infinity),
    wish: wish < 0 ? Infinity : wish,
    packer,
    footprint: footprint.value,
  };
}

/** Weights count as their packer says, workspace as the kernel's own backend says. */
function footprintOf<Spec extends LayerSpec, Rule extends Rules>(
  packer: Packer<Spec, Rule>,
  backend: ErasedBackend<Spec, Rule>,
  rule: Rule,
  spec: Spec,
  maxNumTokens: number,
): Attempt<Footprint> {
  const result = attempt(() => {
    const packed = packer.erased.footprint(spec, packer.rule.id);
    const own = packer.erased === backend ? packed : backend.footprint(spec, rule.id);
    return { residentBytes: packed.residentBytes, preparePeakBytes: packed.preparePeakBytes, workspaceBytes: own.workspaceBytes };
  });
  if ('fault' in result) return result;
  const { residentBytes, preparePeakBytes } = result.value;
  const workspace = attempt(() => result.value.workspaceBytes(Math.min(maxNumTokens, rule.tokens.max ?? maxNumTokens)));
  if ('fault' in workspace) return workspace;
  const figures: LayerBytes = { residentBytes, preparePeakBytes, workspaceBytes: workspace.value };
  for (const [label, bytes] of Object.entries(figures)) {
    if (!Number.isFinite(bytes) || bytes < 0) return { fault: `${label} is ${String(bytes)}` };
  }
  return result;
}

/** Adds what was measured of each candidate, where evidence knows the class of the layer. */
function withMeasurements<Spec extends LayerSpec, Rule extends Rules>(
  candidates: readonly Candidate<Spec, Rule>[],
  spec: Spec,
  { evidence, maxNumTokens }: EvaluationContext,
): readonly Candidate<Spec, Rule>[] {
  const classes = evidence.measured?.classes ?? [];
  if (classes.length === 0) return candidates;
  const layerClass = layerClassOf(spec);
  const found = classes.find((one) => one.layerClass === layerClass);
  if (found === undefined) return candidates;
  const costs = measuredCosts(candidates, spec, found, maxNumTokens);
  return candidates.map((candidate) => {
    const measured = costs.get(ruleName(candidate));
    return measured === undefined ? candidate : { ...candidate, measured };
  });
}

/** Keeps the candidates that the hook kept; the others become refusals that name the tap. */
export function narrowed<Spec extends LayerSpec, Rule extends Rules>(
  { candidates, refused }: Evaluation<Spec, Rule>,
  spec: LayerSpec,
  narrow: (candidates: readonly CandidateInfo[], layer: LayerSpec) => NarrowedCandidates,
): Evaluation<Spec, Rule> {
  const infos = candidates.map(({ backend, rule, numerics, priority, built, measured }) =>
    Object.freeze({ backend, rule, numerics, priority, built, ...(measured === undefined ? {} : { measured }) }),
  );
  const { kept, removedBy } = narrow(infos, spec);
  const keptSet = new Set(kept);
  const removals = infos
    .filter((info) => !keptSet.has(info))
    .map((info) => ({
      backend: info.backend,
      rule: info.rule,
      reasons: [refusal('hook', `${removedBy.get(info) ?? 'a plugin'} removed it from the candidates`, undefined, undefined)],
    }));
  return {
    // Ranked anew: what was removed may have been what others were measured against.
    candidates: rankRules(candidates.filter((_, index) => keptSet.has(infos[index] as CandidateInfo))),
    refused: sortRefusals([...refused, ...removals]),
  };
}

/** In the order of backend and rule. */
export function sortRefusals(refused: readonly RuleRefusal[]): readonly RuleRefusal[] {
  return [...refused].sort((a, b) => compareText(a.backend, b.backend) || compareText(a.rule, b.rule));
}

/** The backend that packs a layout. */
function layoutOwner(layout: string): string {
  return layout.slice(0, layout.indexOf('/'));
}

type Attempt<T> = { readonly value: T } | { readonly fault: string };

/** A plugin's function may throw; the oracle then has a reason, not a crash. */
function attempt<T>(run: () => T): Attempt<T> {
  try {
    return { value: run() };
  } catch (error) {
    return { fault: messageOf(error) };
  }
}

function withoutStop(sentence: string): string {
  return sentence.replace(/\.\s*$/, '');
}
