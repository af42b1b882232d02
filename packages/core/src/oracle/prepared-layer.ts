import type { Kernel, PackedWeights } from '../backend.js';
import { MoeError } from '../errors.js';
import { SCHEME } from '../quant/quant-scheme.js';
import type { Binding } from './plan-types.js';

/** A kernel that is ready, with the weights it reads. */
export interface PreparedBinding {
  readonly binding: Binding;
  readonly kernel: Kernel;
  /** Shared with the other bindings of the same layout; `dispose` gives up this layer's hold once, however often it is called. */
  readonly packed: PackedWeights;
}

/**
 * A layer that can run. Its own `kernel`, `packed` and `binding` are those of the only binding; they throw MOE_INTERNAL where calls of different
 * sizes go to different kernels, so that nobody runs a kernel outside its interval by overlooking the others.
 */
export interface PreparedLayer extends PreparedBinding {
  /** By tokens, ascending; together they take every call of 1 to maxNumTokens tokens. */
  readonly bindings: readonly PreparedBinding[];
  /** Packed weights, each layout once. */
  readonly residentBytes: number;
  /** Disposes the kernels, then the packed weights. May be called twice; no submit may use the layer any more. */
  readonly dispose: () => void;
}

/**
 * One pack and how many hold it: every kernel, and the layer itself. Whoever comes last disposes the weights, so the order in which kernels and
 * weights are given up does not matter.
 */
export class PackShare {
  readonly packed: PackedWeights;
  /** For the layer's owner: as `packed`, with a `dispose` that only releases. */
  readonly handle: PackedWeights;
  readonly release: () => void;
  #holders = 1;

  constructor(packed: PackedWeights) {
    this.packed = packed;
    this.release = once(() => {
      this.#drop();
    });
    const { layout, residentBytes, handle } = packed;
    this.handle = { layout, [SCHEME]: packed[SCHEME], residentBytes, handle, dispose: this.release };
  }

  /** Ties a kernel to the weights: they live until it was disposed. */
  use(kernel: Kernel): Kernel {
    this.#holders += 1;
    return {
      entry: kernel.entry,
      workspaceBytes: (numTokens) => kernel.workspaceBytes(numTokens),
      dispose: once(() => {
        try {
          kernel.dispose();
        } finally {
          this.#drop();
        }
      }),
    };
  }

  #drop(): void {
    this.#holders -= 1;
    if (this.#holders === 0) this.packed.dispose();
  }
}

/** @param shares - every pack that the bindings use. */
export function preparedLayer(name: string, bindings: readonly PreparedBinding[], shares: readonly PackShare[]): PreparedLayer {
  const only = (): PreparedBinding => {
    const [first, ...others] = bindings;
    if (first !== undefined && others.length === 0) return first;
    throw new MoeError(
      'MOE_INTERNAL',
      `${name} is served by ${bindings.length} kernels, by number of tokens; its caller knows of one. Use "bindings".`,
      {
        layer: name,
        bindings: bindings.map(({ binding }) => binding),
      },
    );
  };
  return {
    get binding() {
      return only().binding;
    },
    get kernel() {
      return only().kernel;
    },
    get packed() {
      return only().packed;
    },
    bindings,
    residentBytes: shares.reduce((sum, { packed }) => sum + packed.residentBytes, 0),
    dispose: () => {
      for (const { kernel } of bindings) kernel.dispose();
      for (const share of shares) share.release();
    },
  };
}

function once(run: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    run();
  };
}
