import type { LayerPlan, RuleRefusal } from '@moe-server/core';
import { wrapText } from './wrapped-text.js';

/**
 * What else would serve a layer, and why the rest would not. Rules of a backend that give the same reasons share them; rules for other schemes are
 * counted, because that alone settles them.
 *
 * @param width - columns of a line.
 */
export function refusalLines({ eligible, refused, bindings }: LayerPlan, width: number, indent: string): string[] {
  const lines: string[] = [];
  const say = (label: string, text: string): void => {
    lines.push(...wrapText(text, width, `${indent}${label.padEnd(labelWidth)}`, indent + ' '.repeat(labelWidth)));
  };
  for (const { backend, rule, numerics, because } of eligible) say('could too', `${backend}/${rule} (${numerics}): ${because}.`);
  const [foreign, own] = [refused.filter(isForOtherScheme), refused.filter((one) => !isForOtherScheme(one))];
  for (const { backend, rules, text } of alike(own)) say('refused', `${backend}/${rules.join(', ')}: ${text}`);

  // A backend that has nothing for the scheme says what it has; of the others it goes without saying.
  const known = new Set([...bindings, ...eligible, ...own].map(({ backend }) => backend));
  const counts: string[] = [];
  for (const [backend, rules] of byBackend(foreign)) {
    if (known.has(backend)) counts.push(`${String(rules.length)} of ${backend}`);
    else say('refused', `${backend}: ${otherSchemes(rules)}`);
  }
  if (counts.length > 0) say('besides', `rules for other schemes, in full with --json: ${counts.join(', ')}.`);
  return lines;
}

const labelWidth = 'could too'.length + 2;

function isForOtherScheme({ reasons }: RuleRefusal): boolean {
  return reasons.some(({ dimension }) => dimension === 'scheme');
}

function otherSchemes(rules: readonly RuleRefusal[]): string {
  const reasons = rules.flatMap((rule) => rule.reasons);
  const scheme = reasons.find(({ dimension }) => dimension === 'scheme');
  const schemes = new Set(
    reasons.filter(({ dimension }) => dimension === 'scheme').flatMap(({ required }) => required as readonly string[]),
  );
  const device = reasons.find(({ dimension }) => dimension === 'device');
  const isEverywhere = rules.every((rule) => rule.reasons.some(({ message }) => message === device?.message));
  return `it runs ${[...schemes].join(', ')}; these weights are ${String(scheme?.actual)}.${device !== undefined && isEverywhere ? ` ${device.message}` : ''}`;
}

/** Rules of one backend with the same reasons. */
function alike(
  refused: readonly RuleRefusal[],
): readonly { readonly backend: string; readonly rules: readonly string[]; readonly text: string }[] {
  const groups = new Map<string, { readonly backend: string; readonly rules: string[]; readonly text: string }>();
  for (const { backend, rule, reasons } of refused) {
    const text = reasons.map(({ message }) => message).join(' ');
    const group = groups.get(`${backend}\n${text}`);
    if (group === undefined) groups.set(`${backend}\n${text}`, { backend, rules: [rule], text });
    else group.rules.push(rule);
  }
  return [...groups.values()];
}

function byBackend(refused: readonly RuleRefusal[]): ReadonlyMap<string, readonly RuleRefusal[]> {
  const groups = new Map<string, RuleRefusal[]>();
  for (const one of refused) groups.set(one.backend, [...(groups.get(one.backend) ?? []), one]);
  return groups;
}
