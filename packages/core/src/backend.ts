import type { Arithmetic } from './arithmetic.js';
import type { ReadBuffer } from './checkpoint/read-buffer.js';
import type { CpuFeature, DeviceInfo } from './device-info.js';
import type { ExpertGroupSpec, LinearSpec, RoutingMethod } from './layer-spec.js';
import type { SCHEME, SchemeKey, SchemeRegistry } from './quant/quant-scheme.js';

/**
 * THE contract. A backend describes what it can run as rules, packs weights into a layout of its own, and makes kernels.
 * The oracle evaluates the rules; a backend cannot opt out, only narrow further (`refuse`).
 *
 * The members of a backend are property functions, never methods: TypeScript compares methods bivariantly, and then a
 * backend for `nvfp4` could be passed where FP8 weights are handed out.
 */
export interface MoeBackend<S extends SchemeKey = SchemeKey> extends Backend<S, ExpertGroupSpec, ExpertSupportRule<S>> {
  readonly kind: 'moe';
  /**
   * Brings the weights of one group into `rule.layout`. Called once per group and layout, while the model loads, before any kernel
   * of the group. Reads expert by expert so that peak memory stays near the packed size. Runs off the JS thread where it computes.
   *
   * @throws whatever reading throws; a {@link MoeError} when the weights contradict the group.
   */
  readonly pack: (
    group: ExpertGroupSpec,
    rule: ExpertSupportRule<S>,
    weights: ExpertWeights<S>,
    context: PackContext,
  ) => Promise<PackedWeights>;
  /** The inverse: one expert in the checkpoint's format, bit for bit. Checks and simulation read through it. */
  readonly unpack: (group: ExpertGroupSpec, packed: PackedWeights, slot: number) => ExpertMatrices<S>;
}

/** The sibling for dense layers, shared experts and the vocabulary projection. */
export interface LinearBackend<S extends SchemeKey = SchemeKey> extends Backend<S, LinearSpec, LinearSupportRule<S>> {
  readonly kind: 'linear';
  /** As {@link MoeBackend.pack}; fused modules arrive as several matrices, each with its own scales, in row order. */
  readonly pack: (
    linear: LinearSpec,
    rule: LinearSupportRule<S>,
    weights: LinearWeights<S>,
    context: PackContext,
  ) => Promise<PackedWeights>;
  /** The inverse: all modules of the linear. */
  readonly unpack: (linear: LinearSpec, packed: PackedWeights) => readonly SchemeRegistry[S][];
}

/**
 * What both kinds of backends are. The oracle asks once for all layers that differ only in name, layer index, rank and *which*
 * experts they hold (not how many); answers must not depend on those.
 */
interface Backend<S extends SchemeKey, Spec, Rule> {
  /** Short name that flags accept and messages print: 'cpu', 'b12x'. */
  readonly name: string;
  readonly rules: readonly Rule[];
  /** A default order until something was measured: the higher wins. Ties go to the lower name, then the lower rule id. */
  readonly priority: (spec: Spec, rule: Rule, device: DeviceInfo) => number;
  /** May only narrow what the rules cover. Pure and synchronous: no I/O, no clock. */
  readonly refuse?: (spec: Spec, rule: Rule, device: DeviceInfo) => Refusal | undefined;
  readonly footprint: (spec: Spec, rule: Rule) => Footprint;
  /**
   * Whether the kernels of this rule exist in this installation: undefined when they do, else the sentence that says what is missing
   * (an addon for this platform, a kernel not written yet). `plan --as` marks such bindings, a start refuses them.
   */
  readonly missing?: (rule: Rule) => string | undefined;
  /**
   * Makes the kernel for packed weights. Called once per binding; may be called several times on the same `packed`.
   * The engine keeps `packed` alive as long as any of its kernels.
   */
  readonly createKernel: (spec: Spec, rule: Rule, packed: PackedWeights, context: KernelContext) => Promise<Kernel>;
  /** How packed weights are kept on disk between starts; left out = they are packed at every start. */
  readonly storage?: PackedStorage<Spec, Rule>;
  /** Never set: keeps the scheme type in the structure, so that backends of different schemes are different types. */
  readonly __schemes?: (scheme: S) => void;
}

/** What both kinds of rules say. Left out = the neutral value only. */
export interface SupportRule<S extends SchemeKey> {
  /** Unique within the backend, stable between releases: plans name it. */
  readonly id: string;
  /** Scheme keys that it runs. */
  readonly schemes: readonly S[];
  readonly device: DeviceSupport;
  /** Tokens of one call. The core may split a longer call; the plan shows it. */
  readonly tokens: Range;
  readonly arithmetic: Arithmetic;
  /** `<owner>/<name>@<version>`: only its owner packs it, others may read it. */
  readonly layout: string;
  readonly parallel?: readonly ('tp' | 'ep')[];
  readonly bias?: boolean;
  /** The same row gives the same bits whatever else is in the call. */
  readonly batchInvariant?: boolean;
  readonly graphCapture?: boolean;
  /** Used only when somebody names the backend; the sentence says why. */
  readonly onlyWhenNamed?: string;
}

/** If all of a rule holds, the backend can run the expert group. Rules are data: the core evaluates them, docs and the command line print them. */
export interface ExpertSupportRule<S extends SchemeKey = SchemeKey> extends SupportRule<S> {
  readonly activations: readonly ActivationSupport[];
  readonly sizes: { readonly hiddenSize: Multiple; readonly moeIntermediateSize: Multiple };
  readonly numExperts: Range;
  readonly topK: Range;
  /** Different schemes for w13 and w2 in one group. */
  readonly mixedProjections?: boolean;
  /** Routing the kernel does by itself; left out = routing happens outside, which suits every method. */
  readonly routing?: readonly RoutingMethod[];
}

export interface LinearSupportRule<S extends SchemeKey = SchemeKey> extends SupportRule<S> {
  readonly sizes: { readonly inFeatures: Multiple; readonly outFeatures: Multiple };
}

/** Inclusive on both sides; a side left out is open. */
export interface Range {
  readonly min?: number;
  readonly max?: number;
}

export interface Multiple extends Range {
  /** The value must be a multiple of this. */
  readonly multipleOf: number;
}

export type DeviceSupport =
  /** `features`: all are needed. */
  | { readonly type: 'cpu'; readonly features?: readonly CpuFeature[]; readonly architectures?: readonly ('x64' | 'arm64')[] }
  /** `sm`: compute capabilities as major * 10 + minor; a list of exact ones or an interval. */
  | { readonly type: 'cuda'; readonly sm: readonly number[] | Range };

export type ActivationSupport = { readonly type: 'silu' } | { readonly type: 'swiglu'; readonly alpha: Range; readonly limit: Range };

/** One reason for a no. `dimension` says which part of the rule; `message` is a sentence that a person can act on. */
export interface Refusal {
  readonly dimension: RefusalDimension;
  readonly message: string;
  readonly required?: unknown;
  readonly actual?: unknown;
}

export type RefusalDimension =
  | 'scheme'
  | 'device'
  | 'activation'
  | 'hiddenSize'
  | 'moeIntermediateSize'
  | 'inFeatures'
  | 'outFeatures'
  | 'numExperts'
  | 'topK'
  | 'tokens'
  | 'parallel'
  | 'bias'
  | 'batchInvariant'
  | 'graphCapture'
  | 'routing'
  | 'mixedProjections'
  | 'layout'
  | 'numerics'
  | 'bytes'
  | 'preference'
  | 'onlyWhenNamed'
  | 'notBuilt'
  | 'quarantined'
  | 'hook'
  | 'backend';

/** Bytes on the device. */
export interface Footprint {
  /** Packed weights, for as long as the model is loaded. */
  readonly residentBytes: number;
  /** Beyond `residentBytes`, while packing. */
  readonly preparePeakBytes: number;
  /** Scratch memory of one call; the engine allocates the largest once and shares it between layers. */
  readonly workspaceBytes: (numTokens: number) => number;
}

/** The three matrices of one expert. gate and up are [moeIntermediateSize, hiddenSize], down is [hiddenSize, moeIntermediateSize]. */
export interface ExpertMatrices<S extends SchemeKey = SchemeKey> {
  readonly gate: SchemeRegistry[S];
  readonly up: SchemeRegistry[S];
  readonly down: SchemeRegistry[S];
  /** float32, [moeIntermediateSize], [moeIntermediateSize], [hiddenSize]; present when the group has biases. */
  readonly bias?: { readonly gate: Float32Array; readonly up: Float32Array; readonly down: Float32Array };
}

/** Lazy access to a group's experts, already sliced for the rank. */
export interface ExpertWeights<S extends SchemeKey = SchemeKey> {
  readonly numExperts: number;
  /**
   * Reads one expert from disk. `slot` counts within the group.
   *
   * @param into - memory that is used for every read: the matrices lie in it, valid until the next read into it. Left out = the buffers belong to the
   *   caller.
   */
  readonly expert: (slot: number, into?: ReadBuffer) => Promise<ExpertMatrices<S>>;
}

export interface LinearWeights<S extends SchemeKey = SchemeKey> {
  readonly numModules: number;
  /** Reads one of the fused modules. @param into - as in {@link ExpertWeights.expert}. */
  readonly module: (
    index: number,
    into?: ReadBuffer,
  ) => Promise<{ readonly matrix: SchemeRegistry[S]; readonly bias: Float32Array | undefined }>;
}

export interface PackContext {
  readonly device: DeviceInfo;
  /** Called after each expert or module. */
  readonly onProgress?: (bytesRead: number) => void;
  readonly signal?: AbortSignal;
}

/** Weights in a kernel's layout. The creator may hang anything on `handle`; the engine only counts and disposes. */
export interface PackedWeights {
  readonly layout: string;
  /** Schemes inside, checked against the group before a kernel is made. */
  readonly [SCHEME]: readonly string[];
  readonly residentBytes: number;
  readonly handle: unknown;
  /** Called once, after the last kernel on it was disposed. */
  readonly dispose: () => void;
}

/**
 * A backend's part of keeping packed weights. The core has the file: what it is known by (the checkpoint, the spec, the layout, plugin and native code),
 * where it lies, that it is whole. It knows nothing of what is inside.
 */
export interface PackedStorage<Spec, Rule> {
  /** Of weights that `pack` made. Called at most once for them, before their kernels run. */
  readonly save: (spec: Spec, packed: PackedWeights) => PackedImage;
  /**
   * The inverse: allocates as `pack` does, has `fill` write the bytes there, and answers what `pack` would have, so that kernels give the same bits.
   *
   * @param notes - as saved, through JSON.
   * @param fill - called once, with memory of the lengths that were saved, in the same order.
   * @throws what `fill` rejects with; anything when the notes are of no use. What was allocated is freed then, and the core packs the weights.
   */
  readonly restore: (spec: Spec, rule: Rule, notes: unknown, fill: RestoreParts, context: PackContext) => Promise<PackedWeights>;
}

/** Packed weights as they go to disk. */
export interface PackedImage {
  /** Plain JSON: what `restore` needs beside the bytes. */
  readonly notes: unknown;
  /** The memory of the packed weights itself, not a copy; read until they are disposed. Each begins at a multiple of four in its buffer. */
  readonly parts: readonly Uint8Array[];
}

/** Reads the saved parts into memory of the same lengths. Rejects when they are not what was saved; the content is of no use then. */
export type RestoreParts = (parts: readonly Uint8Array[]) => Promise<void>;

export interface KernelContext {
  readonly device: DeviceInfo;
  /** The most tokens one call will bring. */
  readonly maxNumTokens: number;
}

/** Lives as long as the layer. */
export interface Kernel {
  readonly entry: NativeEntry | JsExpertsEntry | JsLinearEntry;
  /** Workspace that a call with this many tokens needs, in bytes. */
  readonly workspaceBytes: (numTokens: number) => number;
  /** Called once, after the last submit that used it has ended. */
  readonly dispose: () => void;
}

/** A `moe_kernel` of `include/moe/abi.h`, as an External with the type tag defined there. The External keeps the kernel alive. */
export interface NativeEntry {
  readonly type: 'native';
  readonly external: unknown;
}

/** A plain function; slow, enough for prototypes, tests and devices that run TypeScript. */
export interface JsExpertsEntry {
  readonly type: 'js-experts';
  readonly run: (args: ExpertsArgs) => void;
}

export interface JsLinearEntry {
  readonly type: 'js-linear';
  readonly run: (args: LinearArgs) => void;
}

/** Arguments of one experts call; the same in `moe_experts_args`. Arrays may be longer than used. */
export interface ExpertsArgs {
  readonly numTokens: number;
  readonly topK: number;
  /** [numTokens, hiddenSize] float32, row-major, read only. */
  readonly hiddenStates: Float32Array;
  /** [numTokens, topK]: slot within the group, −1 = not one of this group's. */
  readonly topkSlots: Int32Array;
  /** [numTokens, topK], already renormalized and scaled. */
  readonly topkWeights: Float32Array;
  /** [numTokens, hiddenSize] float32; overwritten, or added to when `accumulate`. Does not alias hiddenStates. */
  readonly output: Float32Array;
  readonly accumulate: boolean;
}

/** Arguments of one linear call; the same in `moe_linear_args`. */
export interface LinearArgs {
  readonly numTokens: number;
  /** [numTokens, inFeatures] float32, row-major, read only. */
  readonly input: Float32Array;
  /** [numTokens, outFeatures] float32; overwritten, or added to when `accumulate`. */
  readonly output: Float32Array;
  readonly accumulate: boolean;
}
