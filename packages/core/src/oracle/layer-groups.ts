/** Layers in groups, as messages name them. */
import type { LayerPlan } from './plan-types.js';

/** In the order of the keys; each with its first member. */
export function groupBy<T>(items: readonly T[], keyOf: (item: T) => string): [first: T, all: readonly T[]][] {
  const groups = new Map<string, [first: T, all: T[]]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [item, [item]]);
    else group[1].push(item);
  }
  return [...groups.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, group]) => group);
}

type Labels = Pick<LayerPlan, 'name' | 'kind' | 'role' | 'scheme'>;

/** Experts before linears, the target before drafts. */
export function orderOf({ kind, role }: Pick<Labels, 'kind' | 'role'>): readonly number[] {
  return [kind === 'moe' ? 0 : 1, role === 'target' ? 0 : 1];
}

/** `draft experts bf16`. */
export function describeKind({ kind, role, scheme }: Omit<Labels, 'name'>): string {
  return `${role === 'draft' ? 'draft ' : ''}${kind === 'moe' ? 'experts' : 'linear'} ${scheme}`;
}

/** `experts bf16 (model.layers.2.mlp.experts … model.layers.10.mlp.experts, 3 layers)`. */
export function describeGroup(first: Labels, layers: readonly { readonly name: string }[]): string {
  const firstName = layers[0]?.name ?? '';
  const lastName = layers[layers.length - 1]?.name ?? '';
  const names =
    layers.length === 1
      ? firstName
      : layers.length === 2
        ? `${firstName}, ${lastName}`
        : `${firstName} … ${lastName}, ${layers.length} layers`;
  return `${describeKind(first)} (${names})`;
}
