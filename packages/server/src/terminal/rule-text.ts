import { schemeFamily, schemeKeys } from '@moe-server/core';
import type { Arithmetic, DeviceSupport, Multiple, Range } from '@moe-server/core';
import type { DeclaredRule } from '../composition/declared-rules.js';
import { alignColumns, textWidth, wrapText } from './wrapped-text.js';

/** The rules of one backend as a table; what all of them share, and why some are not built, is said below it once. */
export function ruleLines(rules: readonly DeclaredRule[], columns: number | undefined): string[] {
  const head = ['  kind', 'rule', 'schemes', 'device', 'inputs', 'sizes', 'also', 'here'];
  const rows = rules.map(({ kind, rule, declares, built, runsHere }) => [
    `  ${kind === 'moe' ? 'experts' : 'linear'}`,
    rule,
    shorten(declares.schemes),
    deviceText(declares.device),
    inputText(declares.arithmetic),
    sizesText(declares.sizes),
    featuresText(declares),
    runsHere ? 'yes' : built ? 'no' : 'not built',
  ]);
  const notBuilt = [...new Set(rules.flatMap((rule) => rule.notBuilt ?? []))];
  return [...alignColumns([head, ...rows]), ...notBuilt.flatMap((sentence) => wrapText(sentence, textWidth(columns), '  ', '  '))];
}

/** `fp8.*` where a rule runs the whole family. */
function shorten(schemes: readonly string[]): string {
  const families = [...new Set(schemes.map(schemeFamily))];
  return families
    .flatMap((family) => {
      const keys = schemes.filter((scheme) => schemeFamily(scheme) === family);
      const all = schemeKeys().filter((scheme) => schemeFamily(scheme) === family);
      if (keys.length === 1) return keys;
      if (all.every((scheme) => keys.includes(scheme))) return `${family}.*`;
      return `${family}.{${keys.map((key) => key.slice(family.length + 1)).join(',')}}`;
    })
    .join(' ');
}

function deviceText(support: DeviceSupport): string {
  if (support.type === 'cpu') return [...(support.architectures ?? ['cpu']), ...newestFeatures(support.features ?? [])].join(' ');
  if ('length' in support.sm) return `SM ${support.sm.map(smText).join(', ')}`;
  const { min, max } = support.sm;
  return max === undefined ? `SM ${smText(min ?? 0)} and up` : `SM ${smText(min ?? 0)} to ${smText(max)}`;
}

/** The instruction sets that the others of a list come with, so that a line stays short; JSON has all. */
function newestFeatures(features: readonly string[]): string[] {
  const implied = new Set(['fma', 'f16c', 'avx512bw', 'avx512vl', 'avx512dq', 'avx512vbmi']);
  const own = features.filter((feature) => !implied.has(feature));
  return own.includes('avx512f') ? own.filter((feature) => feature !== 'avx2') : own;
}

function smText(sm: number): string {
  return `${String(Math.floor(sm / 10))}.${String(sm % 10)}`;
}

function inputText({ input }: Arithmetic): string {
  if (input.type === 'as-scheme') return 'as scheme';
  if (input.type === 'float') return input.dtype;
  const { quantization } = input;
  return 'granularity' in quantization ? `${quantization.type} per ${quantization.granularity}` : quantization.type;
}

function sizesText(sizes: DeclaredRule['declares']['sizes']): string {
  return Object.entries(sizes as Readonly<Record<string, Multiple>>)
    .filter(([, { multipleOf, min, max }]) => multipleOf > 1 || min !== undefined || max !== undefined)
    .map(
      ([name, size]) =>
        `${sizeNames[name] ?? name} ${[size.multipleOf > 1 ? `% ${String(size.multipleOf)}` : '', rangeText(size)].join('')}`,
    )
    .join(', ');
}

const sizeNames: Readonly<Record<string, string>> = { hiddenSize: 'H', moeIntermediateSize: 'I', inFeatures: 'K', outFeatures: 'N' };

function rangeText({ min, max }: Range): string {
  if (max !== undefined) return min === undefined ? ` ≤ ${String(max)}` : ` ${String(min)}–${String(max)}`;
  return min === undefined || min <= 1 ? '' : ` ≥ ${String(min)}`;
}

/** What the columns mean. */
export const ruleLegend =
  'inputs: what the input of each projection is turned into ("as scheme": as the checkpoint was calibrated). sizes: multiples that H = hidden_size, I = ' +
  'moe_intermediate_size, K = in_features and N = out_features of one rank must be. also: tp, ep = tensor and expert parallel; invariant = results do not depend ' +
  'on the batch; graphs = can be captured; activations. here: whether the kernels are in this installation and for this device. --json has all that rules say.';

/** What a rule covers beyond the neutral. */
function featuresText(declares: DeclaredRule['declares']): string {
  const { parallel = [], bias, batchInvariant, graphCapture, tokens, onlyWhenNamed } = declares;
  const calls = rangeText(tokens);
  return [
    ...parallel,
    ...(bias === true ? ['bias'] : []),
    ...(batchInvariant === true ? ['invariant'] : []),
    ...(graphCapture === true ? ['graphs'] : []),
    ...(calls === '' ? [] : [`tokens${calls}`]),
    ...('activations' in declares ? declares.activations.map(({ type }) => type) : []),
    ...(onlyWhenNamed === undefined ? [] : ['when named']),
  ].join(' ');
}
