import type { NumericsClass } from '../arithmetic.js';
import type { ExpertSupportRule, LinearSupportRule, Range, Refusal } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import type { QuantizedKvCacheDType } from '../kv-cache.js';
import type { LayerRole, LayerSpec } from '../layer-spec.js';
import type { ErasedLinearBackend, ErasedMoeBackend } from './erased-backend.js';
import type { MeasuredClass, MeasuredCost } from './evidence.js';
import type { Preference } from './preferences.js';

/** Everything a plan depends on. {@link plan} reads nothing else. */
export interface PlanRequest {
  readonly layers: readonly LayerSpec[];
  readonly device: DeviceInfo;
  readonly moeBackends: readonly ErasedMoeBackend[];
  readonly linearBackends: readonly ErasedLinearBackend[];
  /** The most tokens one call of a kernel will bring. */
  readonly maxNumTokens: number;
  readonly preferences?: readonly Preference[];
  readonly numerics?: NumericsPolicy;
  readonly requirements?: Requirements;
  /** Bytes that packed weights and workspaces may take; left out = the device's memory, and when that is not known nothing is refused for bytes. */
  readonly memoryBytes?: number;
  /** Judge the declared rules as if every kernel were built (`plan --as`); such bindings are marked `built: false`. */
  readonly assumeBuilt?: boolean;
  readonly evidence?: Evidence;
  /** Narrows the candidates of one layer; see `hooks.candidates`. What it adds is ignored. */
  readonly narrow?: (candidates: readonly CandidateInfo[], layer: LayerSpec) => NarrowedCandidates;
}

/**
 * Which numerics classes are allowed: `auto` = same or wider, `approximate` = all three, `same` and `wider` that class alone where a scheme quantizes
 * inputs. `float32`: same or wider, and nothing is rounded to a coarser type than float32, inputs least of all.
 */
export type NumericsChoice = 'auto' | 'float32' | NumericsClass;

export interface NumericsPolicy {
  readonly default: NumericsChoice;
  /** By scheme key or family; the key wins. */
  readonly byScheme?: Readonly<Record<string, NumericsChoice>>;
}

/** What the caller needs of every kernel. */
export interface Requirements {
  readonly batchInvariant?: boolean;
  readonly graphCapture?: boolean;
}

/** What was learnt about kernels on this machine. */
export interface Evidence {
  /** Kernels that crashed or computed wrong numbers; a field left out matches all. */
  readonly quarantined?: readonly Quarantine[];
  /** Ranks the rules that cover a layer before their priorities do. */
  readonly measured?: {
    /** Fingerprint of the device, the plugins and the release that the times hold for. */
    readonly environment: string;
    readonly classes: readonly MeasuredClass[];
  };
}

export interface Quarantine {
  readonly backend: string;
  readonly rule?: string;
  readonly kind?: LayerSpec['kind'];
  readonly scheme?: string;
  /** As `layerClassOf` makes it. */
  readonly layerClass?: string;
  /** A sentence with what happened and when. */
  readonly reason: string;
}

/** A rule that covers a layer, as hooks see it. */
export interface CandidateInfo {
  readonly backend: string;
  readonly rule: string;
  readonly numerics: NumericsClass;
  readonly priority: number;
  readonly built: boolean;
  /** Left out = not measured for this class of layers at every size that the rule takes. */
  readonly measured?: MeasuredCost;
}

export interface NarrowedCandidates {
  readonly kept: readonly CandidateInfo[];
  /** Name of the tap that removed a candidate, by the candidate. */
  readonly removedBy: Pick<ReadonlyMap<CandidateInfo, string>, 'get'>;
}

/** The decision, as JSON. Layers are in the natural order of their names, so that the order of the request does not show. */
export interface Plan {
  readonly version: 1;
  readonly device: DeviceInfo;
  /** Made with `assumeBuilt`: a start refuses it. */
  readonly assumesBuilt: boolean;
  readonly maxNumTokens: number;
  readonly layers: readonly LayerPlan[];
  /** Names of the layers without a binding for some number of tokens. */
  readonly unserved: readonly string[];
  readonly bytes: PlanBytes;
  /** What somebody asked for and did not get, or got differently: one sentence each. */
  readonly notices: readonly string[];
  /** The measurements that ranked kernels; left out = there were none, and priority did. */
  readonly evidence?: { readonly environment: string; readonly numClasses: number };
  /** SHA-256 (hex) over what was decided: equal hashes bind equal kernels. Wording and ranks do not enter. */
  readonly hash: string;
}

export interface LayerPlan {
  readonly name: string;
  readonly kind: LayerSpec['kind'];
  readonly role: LayerRole;
  /** The scheme key; `<w13>+<w2>` for a group whose projections differ. */
  readonly scheme: string;
  /** Global ids of the group's experts; moe only. */
  readonly experts?: readonly number[];
  /** As in the linear's spec; some rules refuse such linears. */
  readonly cachedAs?: QuantizedKvCacheDType;
  /** By tokens, ascending, without gaps; empty when the layer is unserved. */
  readonly bindings: readonly Binding[];
  /** Rules that cover the layer and were not chosen. */
  readonly eligible: readonly Alternative[];
  /** Rules that do not. Every rule of every backend of the kind is in exactly one of the three lists. */
  readonly refused: readonly RuleRefusal[];
  readonly bytes: LayerBytes;
}

export interface Binding {
  readonly backend: string;
  readonly rule: string;
  /** Calls with this many tokens go to the kernel; both ends inclusive. */
  readonly tokens: { readonly min: number; readonly max: number };
  readonly layout: string;
  /** Who packs the weights, where it is not the backend itself: the layout's owner. */
  readonly packedBy?: { readonly backend: string; readonly rule: string };
  readonly numerics: NumericsClass;
  readonly built: boolean;
  readonly because: string;
}

export interface Alternative extends CandidateInfo {
  readonly tokens: Range;
  /** Why another was taken. */
  readonly because: string;
}

export interface RuleRefusal {
  readonly backend: string;
  readonly rule: string;
  readonly reasons: readonly Refusal[];
}

export interface LayerBytes {
  readonly residentBytes: number;
  /** Beyond residentBytes, while this layer is packed. */
  readonly preparePeakBytes: number;
  /** Of the largest call. */
  readonly workspaceBytes: number;
}

/** Sums over layers: packed weights add up; peaks and workspaces are used one layer at a time, so the largest counts. */
export interface PlanBytes extends LayerBytes {
  /** residentBytes + the larger of preparePeakBytes and workspaceBytes. */
  readonly requiredBytes: number;
  /** null = not known. */
  readonly availableBytes: number | null;
  readonly fits: boolean;
}

export type AnyRule = ExpertSupportRule | LinearSupportRule;
