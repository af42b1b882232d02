/**
 * One function per dimension of a support rule: undefined where the rule covers the layer, else the refusal with a sentence that says what
 * would have to change. A value that is not known is refused like a wrong one: unknown is not yes.
 */
import type { ActivationSupport, DeviceSupport, Multiple, Range, Refusal, RefusalDimension } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import type { Activation, ParallelPlacement, RoutingMethod } from '../layer-spec.js';
import { schemeInfo } from '../quant/quant-scheme.js';

/** The rule must list every scheme of the layer, and each must be defined. */
export function schemeRefusal(schemes: readonly string[], supported: readonly string[]): Refusal | undefined {
  const undefinedScheme = schemes.find((scheme) => schemeInfo(scheme) === undefined);
  if (undefinedScheme !== undefined) {
    return refusal(
      'scheme',
      `the quantization scheme ${undefinedScheme} is not defined; install the plugin that defines it`,
      supported,
      schemes,
    );
  }
  const foreign = schemes.filter((scheme) => !supported.includes(scheme));
  if (foreign.length === 0) return undefined;
  return refusal(
    'scheme',
    `it runs ${listOf(supported)}; these weights are ${listOf(foreign)}`,
    supported,
    schemes.length === 1 ? schemes[0] : schemes,
  );
}

/** Device type, then compute capability or instruction sets. */
export function deviceRefusal(device: DeviceInfo, support: DeviceSupport): Refusal | undefined {
  if (support.type !== device.type) {
    const wanted = support.type === 'cpu' ? 'a CPU' : `a CUDA device of ${describeSm(support.sm)}`;
    return refusal('device', `it needs ${wanted}; the device is ${describeDevice(device)}`, support, deviceFacts(device));
  }
  if (support.type === 'cuda' && device.type === 'cuda') {
    if (isSmCovered(device.sm, support.sm)) return undefined;
    return refusal('device', `it needs ${describeSm(support.sm)}; the device is ${describeDevice(device)}`, support, deviceFacts(device));
  }
  if (support.type !== 'cpu' || device.type !== 'cpu') return undefined;
  if (support.architectures !== undefined && !support.architectures.some((architecture) => architecture === device.architecture)) {
    return refusal(
      'device',
      `it needs a processor of type ${listOf(support.architectures, 'or')}; this one is ${device.architecture}`,
      support,
      deviceFacts(device),
    );
  }
  const lacking = (support.features ?? []).filter((feature) => !device.features.includes(feature));
  if (lacking.length === 0) return undefined;
  return refusal(
    'device',
    `it needs ${listOf(lacking)}, which this processor or operating system does not offer`,
    support,
    deviceFacts(device),
  );
}

/** The activation with its parameters; one that the core does not know is covered by no rule. */
export function activationRefusal(activation: Activation, supported: readonly ActivationSupport[]): Refusal | undefined {
  if (activation.type === 'other') {
    return refusal(
      'activation',
      `the activation "${activation.name}" is not one that the core knows, so no rule can cover it`,
      supported,
      activation,
    );
  }
  if (activation.type === 'silu') {
    if (supported.some(({ type }) => type === 'silu')) return undefined;
    return refusal('activation', `it runs ${listOf(supported.map(describeActivationSupport))}; the layer has silu`, supported, activation);
  }
  const covers = (one: ActivationSupport) =>
    one.type === 'swiglu' && isInRange(activation.alpha, one.alpha) && isInRange(activation.limit, one.limit);
  if (supported.some(covers)) return undefined;
  const what = `swiglu with alpha ${String(activation.alpha)} and limit ${String(activation.limit)}`;
  return refusal('activation', `it runs ${listOf(supported.map(describeActivationSupport))}; the layer has ${what}`, supported, activation);
}

/** `tpSize`: how often tensor parallel has cut the size, so that the sentence can name a tensor parallel size that would do. */
export function sizeRefusal(
  dimension: RefusalDimension,
  label: string,
  actual: number,
  required: Multiple,
  tpSize: number,
): Refusal | undefined {
  if (!isKnownCount(actual)) return unknownRefusal(dimension, label, actual, required);
  const { multipleOf } = required;
  const misfit = actual % multipleOf !== 0;
  const outside = describeOutside(actual, required);
  if (!misfit && outside === undefined) return undefined;
  const wishes = [misfit ? `a multiple of ${multipleOf}` : undefined, outside].filter((wish) => wish !== undefined);
  const after = tpSize > 1 ? ` after tensor parallel ${tpSize}` : '';
  return refusal(
    dimension,
    `it would serve it if ${label} were ${wishes.join(' and ')}: it is ${actual}${after}${sizeAdvice(actual, required, tpSize)}`,
    required,
    actual,
  );
}

/**
 * What the format itself asks of the rows or columns of a matrix, whatever the rule says: columns in whole groups of one scale, and no cut of
 * tensor parallel through a block of one scale.
 */
export function formatRefusal(
  dimension: RefusalDimension,
  label: string,
  axes: readonly ('rows' | 'columns')[],
  actual: number,
  scheme: string,
  tpSize: number,
): Refusal | undefined {
  const info = schemeInfo(scheme);
  if (info === undefined) return undefined;
  for (const axis of axes) {
    const group = Math.max(axis === 'columns' ? info.groupColumns : 1, tpSize > 1 ? (info.block?.[axis] ?? 1) : 1);
    if (actual % group === 0) continue;
    const required = { multipleOf: group };
    const after = tpSize > 1 ? ` after tensor parallel ${tpSize}` : '';
    return refusal(
      dimension,
      `${scheme} has one scale per ${group} ${axis}, and ${label} is ${actual}${after}${sizeAdvice(actual, required, tpSize)}`,
      required,
      actual,
    );
  }
  return undefined;
}

/** A count within an interval. `remedy`: the setting that would bring it there, if any. */
export function rangeRefusal(
  dimension: RefusalDimension,
  label: string,
  actual: number,
  required: Range,
  remedy?: string,
): Refusal | undefined {
  if (!isKnownCount(actual)) return unknownRefusal(dimension, label, actual, required);
  const outside = describeOutside(actual, required);
  if (outside === undefined) return undefined;
  const advice = remedy === undefined ? '' : `; ${remedy} would do`;
  return refusal(dimension, `it takes ${outside} ${label}; the layer has ${actual}${advice}`, required, actual);
}

/** Whether some call of 1 to `maxNumTokens` tokens is one that the rule takes. */
export function tokensRefusal(maxNumTokens: number, required: Range): Refusal | undefined {
  // Infinity: whoever packs does not care how many tokens a call brings.
  if (!isKnownCount(maxNumTokens) && maxNumTokens !== Infinity)
    return unknownRefusal('tokens', 'the size of a call', maxNumTokens, required);
  const { min = 1 } = required;
  if (min <= maxNumTokens) return undefined;
  return refusal(
    'tokens',
    `it takes calls of at least ${min} tokens, and at most ${maxNumTokens} come in one call; --max-num-batched-tokens ${min} would do`,
    required,
    maxNumTokens,
  );
}

const routingKeys = [
  'score',
  'order',
  'renormalize',
  'numGroups',
  'topkGroups',
  'hasCorrectionBias',
  'hasRouterBias',
  'scalingFactor',
] as const satisfies readonly (keyof RoutingMethod)[];

/** Only for kernels that route by themselves: the method must be one of theirs, in every parameter. */
export function routingRefusal(routing: RoutingMethod, supported: readonly RoutingMethod[] | undefined): Refusal | undefined {
  if (supported === undefined) return undefined;
  const misses = supported.map((one) => routingKeys.filter((key) => one[key] !== routing[key]).map((key) => ({ key, wanted: one[key] })));
  let nearest = misses[0];
  for (const miss of misses) if (miss.length < (nearest?.length ?? Infinity)) nearest = miss;
  if (nearest?.length === 0) return undefined;
  const wishes = (nearest ?? []).map(({ key, wanted }) => `${key} were ${String(wanted)} (it is ${String(routing[key])})`);
  return refusal('routing', `it does the routing itself, and would serve it if ${listOf(wishes)}`, supported, routing);
}

/** Tensor and expert parallel, each where the layer is split. */
export function parallelRefusal(parallel: ParallelPlacement, supported: readonly ('tp' | 'ep')[] | undefined): (Refusal | undefined)[] {
  const ask = (size: number, key: 'tp' | 'ep', label: string) => {
    if (size === 1 || (isKnownCount(size) && supported?.includes(key) === true)) return undefined;
    return refusal('parallel', `its rule does not cover ${label} (size ${String(size)}); it would serve it on one rank`, supported ?? [], {
      [key]: size,
    });
  };
  return [ask(parallel.tpSize, 'tp', 'tensor parallel'), ask(parallel.epSize, 'ep', 'expert parallel')];
}

/** For features that are neutral when absent: `wanted` by the layer or the caller, `offered` by the rule. */
export function flagRefusal(
  dimension: RefusalDimension,
  wanted: boolean,
  offered: boolean | undefined,
  label: string,
): Refusal | undefined {
  // JSON from elsewhere may lack the field; only an explicit false is "not wanted".
  if ((wanted as boolean | undefined) === false || offered === true) return undefined;
  const known =
    (wanted as boolean | undefined) === undefined
      ? `it is not known whether the layer needs ${label}, and its rule covers only layers without`
      : `its rule does not cover ${label}`;
  return refusal(dimension, known, offered ?? false, wanted);
}

/** `SM 12.1`. */
export function describeSmNumber(sm: number): string {
  return `SM ${Math.floor(sm / 10)}.${sm % 10}`;
}

/** A device in a few words, as messages name it. */
export function describeDevice(device: DeviceInfo): string {
  return device.type === 'cuda' ? `${device.name} (${describeSmNumber(device.sm)})` : `${device.name} (CPU, ${device.architecture})`;
}

/** Inclusive on both sides; a value that is no number is in no range. */
export function isInRange(value: number, { min, max }: Range): boolean {
  return Number.isFinite(value) && (min === undefined || value >= min) && (max === undefined || value <= max);
}

/** `a`, `a and b`, `a, b and c`. */
export function listOf(words: readonly string[], conjunction = 'and'): string {
  if (words.length < 2) return words[0] ?? 'nothing';
  return `${words.slice(0, -1).join(', ')} ${conjunction} ${words[words.length - 1] ?? ''}`;
}

/** A refusal whose message is `message` with a full stop. */
export function refusal(dimension: RefusalDimension, message: string, required: unknown, actual: unknown): Refusal {
  return { dimension, message: `${message}.`, required, actual };
}

function unknownRefusal(dimension: RefusalDimension, label: string, actual: unknown, required: unknown): Refusal {
  return refusal(dimension, `${label} is not known (${String(actual)}), so it cannot be shown to be covered`, required, actual ?? null);
}

function isKnownCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}

function describeOutside(actual: number, { min, max }: Range): string | undefined {
  if (min !== undefined && actual < min) return `at least ${min}`;
  if (max !== undefined && actual > max) return `at most ${max}`;
  return undefined;
}

function sizeAdvice(actual: number, required: Multiple, tpSize: number): string {
  // Zeros can be added to a matrix, so what is larger would do; what is smaller would not.
  const next = Math.ceil(Math.max(actual, required.min ?? 1) / required.multipleOf) * required.multipleOf;
  const padded = isInRange(next, required) ? next : undefined;
  const fits = (size: number) => Number.isInteger(size) && size % required.multipleOf === 0 && isInRange(size, required);
  const whole = actual * tpSize;
  for (let size = tpSize - 1; size >= 1; size -= 1) {
    if (tpSize % size === 0 && fits(whole / size))
      return `${padded === undefined ? '; ' : `; pad to ${padded}, or `}use ${size === 1 ? 'no tensor parallel' : `tensor parallel ${size}`}`;
  }
  if (padded === undefined || actual % required.multipleOf === 0) return '';
  return tpSize > 1 ? `; pad to ${padded}` : `; ${padded} would do`;
}

function isSmCovered(sm: number, support: readonly number[] | Range): boolean {
  return isSmList(support) ? support.includes(sm) : isInRange(sm, support);
}

function isSmList(support: readonly number[] | Range): support is readonly number[] {
  return Array.isArray(support);
}

function describeSm(support: readonly number[] | Range): string {
  if (isSmList(support)) return listOf(support.map(describeSmNumber), 'or');
  const { min, max } = support;
  if (min !== undefined && max !== undefined) return `${describeSmNumber(min)} to ${describeSmNumber(max)}`;
  if (min !== undefined) return `${describeSmNumber(min)} or newer`;
  return max === undefined ? 'any SM' : `${describeSmNumber(max)} or older`;
}

function deviceFacts(device: DeviceInfo): unknown {
  return device.type === 'cuda'
    ? { type: 'cuda', sm: device.sm }
    : { type: 'cpu', architecture: device.architecture, features: device.features };
}

function describeActivationSupport(support: ActivationSupport): string {
  if (support.type === 'silu') return 'silu';
  return `swiglu with alpha ${describeRange(support.alpha)} and limit ${describeRange(support.limit)}`;
}

function describeRange({ min, max }: Range): string {
  if (min !== undefined && min === max) return String(min);
  if (min !== undefined && max !== undefined) return `${min} to ${max}`;
  if (min !== undefined) return `of at least ${min}`;
  return max === undefined ? 'of any value' : `of at most ${max}`;
}
