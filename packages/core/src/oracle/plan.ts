import type { SupportRule } from '../backend.js';
import type { LayerSpec, LinearSpec } from '../layer-spec.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { describeDevice, refusal } from './dimensions.js';
import type { ErasedBackend } from './erased-backend.js';
import { evaluate, narrowed, sortRefusals, type Evaluation, type EvaluationContext } from './evaluate.js';
import { linearKind, moeKind, type LayerKind } from './layer-kind.js';
import { fitIntoMemory, formatBytes, sumBytes } from './memory.js';
import { becauseOf, noticesOf, type WishOutcome } from './because.js';
import { firstGap, optionsOf, type Option } from './options.js';
import { compareText } from './order.js';
import { planHash } from './plan-hash.js';
import type { Alternative, Binding, LayerBytes, LayerPlan, Plan, PlanRequest, RuleRefusal } from './plan-types.js';
import { byPrecedence, chainFor, type PreferenceChain, type RankedPreference } from './preferences.js';

type Rules = SupportRule<SchemeKey>;

/** Layers that get the same answer: equal in shape and in what the preferences say about them. */
interface LayerClass<Spec extends LayerSpec, Rule extends Rules> {
  readonly layers: readonly Spec[];
  readonly schemes: readonly SchemeKey[];
  readonly chain: PreferenceChain;
  readonly evaluation: Evaluation<Spec, Rule>;
  readonly options: readonly Option<Spec, Rule>[];
}

/** A decided class: all of a {@link LayerPlan} but what differs between its layers, and what became of each wish. */
interface Verdict {
  readonly layers: readonly LayerSpec[];
  readonly schemes: readonly SchemeKey[];
  readonly bindings: readonly Binding[];
  readonly eligible: readonly Alternative[];
  readonly refused: readonly RuleRefusal[];
  readonly bytes: LayerBytes;
  readonly outcomes: readonly WishOutcome[];
}

const noBytes: LayerBytes = { residentBytes: 0, preparePeakBytes: 0, workspaceBytes: 0 };

/**
 * Decides which kernels serve which layers. Pure and synchronous: the answer depends on the request alone, not on the order in which layers,
 * backends or rules stand in it (preferences of equal precedence count in their order).
 *
 * Every rule of every backend of a layer's kind is asked on every dimension. Of the rules that cover a layer, preferences choose first, then
 * measurements where the request brings them, then priority, then names. Where no rule takes calls of every size, several are composed. Does
 * not throw for layers that nobody serves: they are in `unserved`, with all reasons in the layer; `explainUnserved` makes one error of them.
 */
export function plan(request: PlanRequest): Plan {
  const { device, maxNumTokens } = request;
  const context: EvaluationContext = {
    device,
    maxNumTokens,
    requirements: request.requirements ?? {},
    numerics: request.numerics ?? { default: 'auto' },
    assumeBuilt: request.assumeBuilt ?? false,
    evidence: request.evidence ?? {},
  };
  const preferences = byPrecedence(request.preferences ?? []);
  const isExperts = (spec: LayerSpec) => spec.kind === 'moe';
  const moe = classify(moeKind, request.layers.filter(isExperts), request.moeBackends, preferences, context, request.narrow);
  const linear = classify(
    linearKind,
    request.layers.filter((spec) => spec.kind === 'linear'),
    request.linearBackends,
    preferences,
    context,
    request.narrow,
  );

  const availableBytes = request.memoryBytes ?? device.memoryBytes;
  const choices = [...moe, ...linear].map(({ options, layers }) => ({
    numLayers: layers.length,
    options: options.map(({ bytes, lead }) => ({ bytes, isWished: lead.wish !== Infinity })),
  }));
  const chosen = fitIntoMemory(choices, availableBytes);
  const bytesText = `${formatBytes(availableBytes ?? 0)} of ${describeDevice(device)}`;
  const verdicts = [
    ...moe.map((one, index) => decide(one, chosen[index] ?? -1, context, bytesText)),
    ...linear.map((one, index) => decide(one, chosen[moe.length + index] ?? -1, context, bytesText)),
  ];

  const layers = sortByName(verdicts.flatMap(layerPlansOf));
  const decision = {
    version: 1 as const,
    device,
    assumesBuilt: context.assumeBuilt,
    maxNumTokens,
    layers,
    unserved: layers.filter(({ bindings }) => bindings.length === 0).map(({ name }) => name),
    bytes: sumBytes(
      verdicts.map(({ bytes, layers: { length } }) => ({ bytes, numLayers: length })),
      availableBytes,
    ),
    notices: noticesOf(preferences, verdicts, request),
    ...evidenceOf(request),
  };
  return { ...decision, hash: planHash(decision) };
}

/** What the plan says of the evidence that it was given. */
function evidenceOf({ evidence }: PlanRequest): Pick<Plan, 'evidence'> {
  if (evidence?.measured === undefined) return {};
  const { environment, classes } = evidence.measured;
  return { evidence: { environment, numClasses: classes.length } };
}

/** Evaluates each distinct spec once. */
function classify<Spec extends LayerSpec, Rule extends Rules>(
  kind: LayerKind<Spec, Rule>,
  layers: readonly Spec[],
  backends: readonly ErasedBackend<Spec, Rule>[],
  preferences: readonly RankedPreference[],
  context: EvaluationContext,
  narrow: PlanRequest['narrow'],
): LayerClass<Spec, Rule>[] {
  const registry = [...backends].sort((a, b) => compareText(a.name, b.name));
  const positions = new Map(preferences.map(({ preference }, index) => [preference, index]));
  const groups = new Map<string, { readonly chain: PreferenceChain; readonly layers: Spec[] }>();
  for (const spec of layers) {
    const chain = chainFor(spec, kind.schemes(spec), preferences);
    const said = [...chain.wishes, ...chain.forbids].map((preference) => positions.get(preference));
    // A hook may look at the name, so with one in place every layer is asked about by itself.
    const key = JSON.stringify([kind.shape(spec), said, narrow === undefined ? undefined : spec.name]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { chain, layers: [spec] });
    else group.layers.push(spec);
  }
  const sorted = [...groups.entries()].sort(([a], [b]) => compareText(a, b));
  return sorted.map(([, { chain, layers: alike }]) => {
    // A group is never empty; its first layer stands for all.
    const spec = alike[0]!;
    const asked = evaluate(kind, spec, registry, chain, context);
    const evaluation = narrow === undefined ? asked : narrowed(asked, spec, narrow);
    return {
      layers: alike,
      schemes: kind.schemes(spec),
      chain,
      evaluation,
      options: optionsOf(evaluation.candidates, context.maxNumTokens),
    };
  });
}

function decide<Spec extends LayerSpec, Rule extends Rules>(
  { layers, schemes, chain, evaluation, options }: LayerClass<Spec, Rule>,
  chosen: number,
  context: EvaluationContext,
  bytesText: string,
): Verdict {
  const { candidates, refused } = evaluation;
  const option = options[chosen];
  if (option === undefined) {
    const gap = firstGap(candidates, context.maxNumTokens);
    const partial = candidates.map(({ backend, rule, min, max }) => ({
      backend,
      rule,
      reasons: [
        refusal(
          'tokens',
          `it takes calls of ${min} to ${max} tokens, and no rule that is left takes ${gap?.min ?? 1} to ${gap?.max ?? context.maxNumTokens}` +
            (gap !== undefined && gap.min > 1 ? `; --max-num-batched-tokens ${gap.min - 1} would do` : ''),
          { min: 1, max: context.maxNumTokens },
          { min, max },
        ),
      ],
    }));
    const all = sortRefusals([...refused, ...partial]);
    const { outcomes } = becauseOf(undefined, candidates, all, chain, undefined);
    return { layers, schemes, bindings: [], eligible: [], refused: all, bytes: noBytes, outcomes };
  }

  const taken = new Set(option.pieces.map(({ candidate }) => candidate));
  const best = options[0];
  // What the best option would have used beyond the chosen one gave way to the sum of bytes.
  const tooLarge = chosen > 0 && best !== undefined ? best.pieces.map(({ candidate }) => candidate).filter((one) => !taken.has(one)) : [];
  const forBytes = tooLarge.map(({ backend, rule }) => ({
    backend,
    rule,
    reasons: [
      refusal(
        'bytes',
        `with it this layer takes ${formatBytes(best?.bytes.residentBytes ?? 0)} instead of ${formatBytes(option.bytes.residentBytes)}, and the plan would not fit into the ${bytesText}`,
        option.bytes.residentBytes,
        best?.bytes.residentBytes,
      ),
    ],
  }));
  const allRefused = sortRefusals([...refused, ...forBytes]);
  const { pieces, outcomes } = becauseOf(option, candidates, allRefused, chain, tooLarge[0]?.backend);
  const bindings = option.pieces.map(({ candidate, min, max }, index): Binding => {
    const { packer } = candidate;
    const isForeign = packer.erased !== candidate.erased;
    return {
      backend: candidate.backend,
      rule: candidate.rule,
      tokens: { min, max },
      layout: candidate.supportRule.layout,
      ...(isForeign ? { packedBy: { backend: packer.erased.name, rule: packer.rule.id } } : {}),
      numerics: candidate.numerics,
      built: candidate.built,
      because: pieces[index] ?? '',
    };
  });
  const eligible = candidates
    .filter((candidate) => !taken.has(candidate) && !tooLarge.includes(candidate))
    .map(({ backend, rule, numerics, priority, built, measured, supportRule, wish }) => ({
      backend,
      rule,
      numerics,
      priority,
      built,
      ...(measured === undefined ? {} : { measured }),
      tokens: supportRule.tokens,
      because:
        wish > option.lead.wish ? 'a preference names the one that was taken' : `${option.lead.backend}/${option.lead.rule} comes first`,
    }));
  return { layers, schemes, bindings, eligible, refused: allRefused, bytes: option.bytes, outcomes };
}

function layerPlansOf({ layers, schemes, bindings, eligible, refused, bytes }: Verdict): LayerPlan[] {
  const scheme = schemes.join('+');
  return layers.map((spec) => ({
    name: spec.name,
    kind: spec.kind,
    role: spec.role,
    scheme,
    ...(spec.kind === 'moe' ? { experts: spec.experts } : cachedAsOf(spec)),
    bindings,
    eligible,
    refused,
    bytes,
  }));
}

/** Left out, not undefined, so that plans are equal to what was read back from JSON. */
function cachedAsOf({ cachedAs }: LinearSpec): Pick<LayerPlan, 'cachedAs'> {
  return cachedAs === undefined ? {} : { cachedAs };
}

/** `layers.2` before `layers.10`: digits compare as numbers, everything else by code units. */
function sortByName(layers: readonly LayerPlan[]): LayerPlan[] {
  return layers
    .map((layer) => ({ layer, chunks: layer.name.split(/(\d+)/) }))
    .sort((a, b) => compareChunks(a.chunks, b.chunks) || compareText(a.layer.name, b.layer.name) || compareText(a.layer.kind, b.layer.kind))
    .map(({ layer }) => layer);
}

function compareChunks(a: readonly string[], b: readonly string[]): number {
  for (let index = 0; index < Math.min(a.length, b.length); index += 1) {
    const [x, y] = [a[index] ?? '', b[index] ?? ''];
    if (x === y) continue;
    // Splitting at captured digits alternates: text at even places, digits at odd ones.
    return (index % 2 === 1 ? Number(x) - Number(y) : 0) || compareText(x, y);
  }
  return a.length - b.length;
}
