import { MoeError } from '../errors.js';
import { singleRank, type ParallelPlacement } from '../layer-spec.js';

/** What a size is made of, and can only be cut between: heads, rows of an expert. */
export interface Parts {
  /** The field of config.json that counts them. */
  readonly field: string;
  readonly count: number;
  /** Where there are fewer parts than ranks, several ranks hold the same one: heads of keys and values. */
  readonly mayRepeat?: boolean;
}

/** Largest tensor parallel size that messages propose. */
const maxProposal = 256;

/**
 * How a model is split over ranks, as the oracle has to know it. Tensor parallel cuts attention, dense layers and the vocabulary projection,
 * and each expert too unless expert parallel gives whole experts to the ranks. Sizes that do not divide are gathered, so that one error can
 * name them all.
 */
export class Partition {
  /** Of linears that are cut. */
  readonly linears: ParallelPlacement;
  /** Of experts: they are cut, or spread whole. */
  readonly experts: ParallelPlacement;
  readonly #parts = new Map<string, Parts>();

  /** @throws {MoeError} MOE_UNSUPPORTED_PARALLEL when a rank or size is none. */
  constructor(parallel: ParallelPlacement) {
    const { tpRank, tpSize, epRank, epSize } = parallel;
    checkRank('tensor parallel', tpRank, tpSize);
    checkRank('expert parallel', epRank, epSize);
    this.linears = { ...singleRank, tpRank, tpSize };
    this.experts = epSize > 1 ? { ...singleRank, epRank, epSize } : this.linears;
  }

  /** This rank's share of a linear's `size`, which is made of `parts`. */
  shareOfLinear(size: number, parts: Parts): number {
    return this.#share(size, parts, this.linears.tpSize);
  }

  /** This rank's share of the width of one expert. */
  shareOfExpert(size: number, field: string): number {
    return this.#share(size, { field, count: size }, this.experts.tpSize);
  }

  /**
   * Ids of the experts on this rank, as an interval: neighbours stay together, and where the number does not divide the first ranks hold one more.
   *
   * @throws {MoeError} MOE_UNSUPPORTED_PARALLEL when a rank would hold none.
   */
  ownExperts(numExperts: number): { readonly first: number; readonly end: number } {
    const { epRank, epSize } = this.experts;
    if (epSize > numExperts) {
      throw new MoeError(
        'MOE_UNSUPPORTED_PARALLEL',
        `Expert parallel size ${epSize} leaves ranks without experts: a layer has ${numExperts}. Use at most ${numExperts}.`,
        { epSize, numExperts },
      );
    }
    const each = Math.floor(numExperts / epSize);
    const larger = numExperts % epSize;
    const first = epRank * each + Math.min(epRank, larger);
    return { first, end: first + each + Number(epRank < larger) };
  }

  /** @throws {MoeError} MOE_UNSUPPORTED_PARALLEL naming every size that does not divide, and the nearest tensor parallel sizes that would do. */
  check(): void {
    const { tpSize } = this.linears;
    const all = [...this.#parts.values()];
    const misfits = all.filter((parts) => !divides(tpSize, parts));
    if (misfits.length === 0) return;
    const would = (size: number): boolean => all.every((parts) => divides(size, parts));
    const below = countFrom(tpSize - 1, 1).find(would);
    const above = countFrom(tpSize + 1, maxProposal).find(would);
    const proposals = [below, above].filter((size) => size !== undefined);
    const named = misfits.map(({ field, count }) => `${field} = ${count}`).join(', ');
    throw new MoeError(
      'MOE_UNSUPPORTED_PARALLEL',
      `Tensor parallel size ${tpSize} does not divide ${named}; ${proposals.join(' or ')} would do.`,
      { tpSize, misfits, wouldDo: proposals },
    );
  }

  #share(size: number, parts: Parts, tpSize: number): number {
    if (tpSize === 1) return size;
    this.#parts.set(parts.field, parts);
    // What does not divide is an error at the end; until then any size will do.
    return divides(tpSize, parts) ? size / Math.min(tpSize, parts.count) : size;
  }
}

function divides(tpSize: number, { count, mayRepeat = false }: Parts): boolean {
  return count % tpSize === 0 || (mayRepeat && tpSize % count === 0);
}

function countFrom(first: number, last: number): number[] {
  const step = first <= last ? 1 : -1;
  return Array.from({ length: Math.max(0, (last - first) * step + 1) }, (_, index) => first + index * step);
}

function checkRank(what: string, rank: number, size: number): void {
  if (Number.isSafeInteger(size) && size >= 1 && Number.isSafeInteger(rank) && rank >= 0 && rank < size) return;
  throw new MoeError('MOE_UNSUPPORTED_PARALLEL', `There is no ${what} rank ${rank} of ${size}; ranks count from 0, sizes from 1.`, {
    rank,
    size,
  });
}
