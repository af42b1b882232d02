import type { LayerBytes, PlanBytes } from './plan-types.js';

/** Layers that are alike, the ways to serve one of them, and how many there are. */
export interface MemoryChoice {
  readonly options: readonly { readonly bytes: LayerBytes; readonly isWished: boolean }[];
  readonly numLayers: number;
}

/**
 * Chooses one option per class of layers so that the sum fits: the first of each (the best) where that fits; else as few classes as needed
 * move to what the cheapest assignment gives them, those that nobody named first, the greatest saving first. When even the cheapest does not
 * fit, it is returned all the same: the plan is then refused with its sum.
 *
 * @returns the index of the chosen option per class; −1 where a class has none.
 */
export function fitIntoMemory(choices: readonly MemoryChoice[], availableBytes: number | undefined): readonly number[] {
  const chosen = choices.map(({ options }): number => (options.length > 0 ? 0 : -1));
  if (availableBytes === undefined || requiredBytes(choices, chosen) <= availableBytes) return chosen;
  const cheapest = cheapestAssignment(choices);
  const saving = (index: number) =>
    (bytesAt(choices, index, chosen)?.residentBytes ?? 0) - (bytesAt(choices, index, cheapest)?.residentBytes ?? 0);
  const moves = [...choices.keys()]
    .filter((index) => chosen[index] !== cheapest[index])
    .map((index) => ({
      index,
      isWished: choices[index]?.options[0]?.isWished ?? false,
      saved: saving(index) * (choices[index]?.numLayers ?? 0),
    }))
    .sort((a, b) => Number(a.isWished) - Number(b.isWished) || b.saved - a.saved || a.index - b.index);
  for (const { index } of moves) {
    chosen[index] = cheapest[index] ?? -1;
    if (requiredBytes(choices, chosen) <= availableBytes) break;
  }
  return chosen;
}

/** Sums one choice. Layers are prepared one at a time and a call uses one workspace, so of those the largest counts. */
export function sumBytes(
  layers: Iterable<{ readonly bytes: LayerBytes; readonly numLayers: number }>,
  availableBytes: number | undefined,
): PlanBytes {
  let residentBytes = 0;
  let preparePeakBytes = 0;
  let workspaceBytes = 0;
  for (const { bytes, numLayers } of layers) {
    residentBytes += bytes.residentBytes * numLayers;
    preparePeakBytes = Math.max(preparePeakBytes, bytes.preparePeakBytes);
    workspaceBytes = Math.max(workspaceBytes, bytes.workspaceBytes);
  }
  const required = residentBytes + Math.max(preparePeakBytes, workspaceBytes);
  return {
    residentBytes,
    preparePeakBytes,
    workspaceBytes,
    requiredBytes: required,
    availableBytes: availableBytes ?? null,
    fits: availableBytes === undefined || required <= availableBytes,
  };
}

/** Bytes for people: `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit] ?? ''}`;
}

/**
 * The assignment with the smallest sum, exactly. The sum is Σ resident + the largest transient, so for each bound on the transient the best is
 * the smallest resident of each class within the bound; one sweep over all options by transient tries every bound.
 */
function cheapestAssignment(choices: readonly MemoryChoice[]): readonly number[] {
  const steps = choices
    .flatMap(({ options, numLayers }, index) =>
      options.map(({ bytes }, option) => ({ index, option, resident: bytes.residentBytes * numLayers, transient: transientOf(bytes) })),
    )
    .sort((a, b) => a.transient - b.transient || a.resident - b.resident || a.index - b.index || a.option - b.option);
  const numServed = choices.filter(({ options }) => options.length > 0).length;
  const resident = new Map<number, number>();
  let sum = 0;
  let best = { total: Infinity, transient: Infinity };
  for (const step of steps) {
    const now = resident.get(step.index);
    if (now !== undefined && now <= step.resident) continue;
    resident.set(step.index, step.resident);
    sum += step.resident - (now ?? 0);
    if (resident.size === numServed && sum + step.transient < best.total) best = { total: sum + step.transient, transient: step.transient };
  }
  return choices.map(({ options }) => {
    let cheapest = -1;
    for (const [option, { bytes }] of options.entries()) {
      if (transientOf(bytes) > best.transient) continue;
      if (cheapest < 0 || bytes.residentBytes < (options[cheapest]?.bytes.residentBytes ?? Infinity)) cheapest = option;
    }
    return cheapest;
  });
}

function transientOf({ preparePeakBytes, workspaceBytes }: LayerBytes): number {
  return Math.max(preparePeakBytes, workspaceBytes);
}

function bytesAt(choices: readonly MemoryChoice[], index: number, chosen: readonly number[]): LayerBytes | undefined {
  return choices[index]?.options[chosen[index] ?? -1]?.bytes;
}

function requiredBytes(choices: readonly MemoryChoice[], chosen: readonly number[]): number {
  const layers = choices.flatMap(({ numLayers }, index) => {
    const bytes = bytesAt(choices, index, chosen);
    return bytes === undefined ? [] : [{ bytes, numLayers }];
  });
  return sumBytes(layers, undefined).requiredBytes;
}
