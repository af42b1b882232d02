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
  if (availableBytes === undefined) return chosen;
  const sum = new RunningSum(choices, chosen);
  if (sum.requiredBytes <= availableBytes) return chosen;
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
    sum.add(index, -1);
    chosen[index] = cheapest[index] ?? -1;
    sum.add(index, 1);
    if (sum.requiredBytes <= availableBytes) break;
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

/** The sum of a choice that changes one class at a time, without going through all of them at each step. */
class RunningSum {
  #residentBytes = 0;
  /** How many classes have each transient, and the position of the largest that some class has. */
  readonly #counts = new Map<number, number>();
  readonly #transients: readonly number[];
  #largest = 0;

  constructor(
    private readonly choices: readonly MemoryChoice[],
    private readonly chosen: readonly number[],
  ) {
    const transients = choices.flatMap(({ options }) => options.map(({ bytes }) => transientOf(bytes)));
    this.#transients = [...new Set(transients)].sort((a, b) => a - b);
    for (const index of choices.keys()) this.add(index, 1);
  }

  get requiredBytes(): number {
    return this.#residentBytes + (this.#transients[this.#largest] ?? 0);
  }

  /** @param sign - 1 to count what is chosen for the class, −1 to take it out before another is. */
  add(index: number, sign: 1 | -1): void {
    const bytes = bytesAt(this.choices, index, this.chosen);
    if (bytes === undefined) return;
    this.#residentBytes += sign * bytes.residentBytes * (this.choices[index]?.numLayers ?? 0);
    const transient = transientOf(bytes);
    this.#counts.set(transient, (this.#counts.get(transient) ?? 0) + sign);
    if (sign > 0) this.#largest = Math.max(this.#largest, this.#positionOf(transient));
    else while (this.#largest > 0 && (this.#counts.get(this.#transients[this.#largest] ?? 0) ?? 0) === 0) this.#largest -= 1;
  }

  #positionOf(transient: number): number {
    let low = 0;
    let high = this.#transients.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#transients[middle] ?? 0) < transient) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
