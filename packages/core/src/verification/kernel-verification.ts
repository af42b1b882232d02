/**
 * Kernels are declared, then checked: before a kernel serves, it runs a few rows of the real layer, and what it computes is held against the
 * reference of its declared arithmetic.
 */
import { createHash } from 'node:crypto';
import type { Kernel, SupportRule } from '../backend.js';
import type { DeviceInfo } from '../device-info.js';
import { MoeError, isMoeError, messageOf } from '../errors.js';
import type { LayerSpec } from '../layer-spec.js';
import type { ErasedBackend } from '../oracle/erased-backend.js';
import { layerClassOf } from '../oracle/evidence.js';
import { canonicalJson } from '../oracle/plan-hash.js';
import type { Binding, Quarantine } from '../oracle/plan-types.js';
import { contractVersion } from '../plugin.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import type { KernelRunner } from './kernel-runner.js';
import type { KernelFigures, LayerSample } from './layer-sample.js';
import { isKnownFormat } from './matrix-rows.js';
import { loadedNativeCode } from './native-code.js';
import type { VerifiedKernels } from './verified-kernels.js';

export interface KernelVerificationOptions {
  readonly runner: KernelRunner;
  readonly device: DeviceInfo;
  /** Names and versions of the loaded plugins. */
  readonly plugins: readonly { readonly name: string; readonly version: string }[];
  readonly verified: VerifiedKernels;
}

type Backend<Spec extends LayerSpec> = Pick<ErasedBackend<Spec, SupportRule<SchemeKey>>, 'name' | 'plugin'>;

/** A kernel that is bound to a layer. */
export interface BoundRule<Spec extends LayerSpec> {
  readonly spec: Spec;
  readonly schemes: readonly SchemeKey[];
  readonly backend: Backend<Spec>;
  readonly rule: SupportRule<SchemeKey>;
  readonly tokens: Binding['tokens'];
  /** Who packs the weights, which need not be the backend. */
  readonly packer: { readonly erased: Backend<Spec> };
}

/** Part of what verified kernels are known by: raised when the check or the reference changes what it accepts. */
const checkVersion = 1;

/** Rows of a check, unless the kernel takes only longer calls. */
const rowsOfCheck = 3;

/** The check of all kernels of one model on one device. A class of equal layers is checked once for each rule. */
export class KernelVerification {
  readonly #options: KernelVerificationOptions;
  readonly #done = new Set<string>();
  #numRun = 0;

  constructor(options: KernelVerificationOptions) {
    this.#options = options;
  }

  /** How many kernels were run, rather than known from before. */
  get numRun(): number {
    return this.#numRun;
  }

  /** Whether {@link verify} will run the kernel, so whether to sample the layer's weights: not if an equal one was verified in an earlier start. */
  needsSample<Spec extends LayerSpec>(bound: BoundRule<Spec>): boolean {
    return this.isNeeded(bound) && !this.#options.verified.has(this.#fingerprint(bound));
  }

  /** Whether {@link verify} would have anything to do. */
  isNeeded<Spec extends LayerSpec>(bound: BoundRule<Spec>): boolean {
    // What a plugin's scheme means, only the plugin knows.
    return bound.schemes.every(isKnownFormat) && !this.#done.has(keyOf(bound));
  }

  /**
   * Runs the kernel, unless an equal one was verified before.
   *
   * @param sample - undefined only when {@link needsSample} said no.
   * @throws {MoeError} MOE_DEVICE_KERNEL with the figures when it computes something else, or fails; {@link quarantineOf} reads what to plan with.
   */
  async verify<Spec extends LayerSpec>(bound: BoundRule<Spec>, kernel: Kernel, sample: LayerSample<never> | undefined): Promise<void> {
    const { runner, verified } = this.#options;
    const { spec, backend, rule, tokens } = bound;
    const fingerprint = this.#fingerprint(bound);
    // Of plain functions nothing tells whether they are still the same.
    const isCacheable = kernel.entry.type === 'native';
    if (!(isCacheable && verified.has(fingerprint))) {
      const numTokens = Math.min(Math.max(rowsOfCheck, tokens.min), tokens.max);
      // Only native kernels are remembered, and by what their rule and plugin are; so this one was, and is none any more.
      if (sample === undefined)
        throw refused(bound, 'was native code when it was verified; its plugin changed without a new version', {}, undefined);
      this.#numRun++;
      let figures: KernelFigures;
      try {
        figures = await sample.compare(kernel, rule.arithmetic, numTokens, runner);
      } catch (error) {
        throw refused(bound, `fails on ${numTokens} tokens: ${messageOf(error)}`, isMoeError(error) ? error.details : {}, error);
      }
      const { nmse, allowedNmse, maxError, allowedMaxError, worst } = figures;
      if (!(nmse <= allowedNmse && maxError <= allowedMaxError)) {
        const what =
          `computes something else than its rule declares: NMSE ${nmse.toExponential(2)} (allowed ${allowedNmse.toExponential(2)}), ` +
          `largest error ${maxError.toExponential(2)} of the reference's RMS (allowed ${allowedMaxError.toExponential(2)}); worst at ${worst}`;
        throw refused(bound, what, { figures }, undefined);
      }
      const verifiedAt = new Date().toISOString();
      if (isCacheable) verified.add(fingerprint, { backend: backend.name, rule: rule.id, layer: spec.name, nmse, allowedNmse, verifiedAt });
    }
    this.#done.add(keyOf(bound));
  }

  /** Everything that a kernel's numbers can depend on, as far as it can be seen from outside. */
  #fingerprint<Spec extends LayerSpec>({ spec, backend, rule, tokens, packer }: BoundRule<Spec>): string {
    const { device, plugins } = this.#options;
    const versioned = ({ name, plugin }: Backend<Spec>): readonly unknown[] => [
      name,
      plugin,
      plugins.find((one) => one.name === plugin)?.version ?? null,
    ];
    const parts = {
      checkVersion,
      contractVersion,
      backend: versioned(backend),
      packer: versioned(packer.erased),
      rule,
      tokens,
      layerClass: layerClassOf(spec),
      device: device.type === 'cpu' ? [device.name, device.architecture, device.features] : [device.name, device.sm],
      nativeCode: loadedNativeCode(),
    };
    return createHash('sha256').update(canonicalJson(parts)).digest('hex');
  }
}

/** What a plan must know so that it binds something else, when a kernel was refused or could not be made; undefined for other errors. */
export function quarantineOf(error: unknown): Quarantine | undefined {
  if (!isMoeError(error) || error.code !== 'MOE_DEVICE_KERNEL') return undefined;
  return error.details.quarantine as Quarantine | undefined;
}

/** The entry that keeps a rule from layers like this one. @param reason - a clause that says what it did. */
export function quarantine(spec: LayerSpec, backend: string, rule: string, reason: string): Quarantine {
  return { backend, rule, kind: spec.kind, layerClass: layerClassOf(spec), reason };
}

function refused<Spec extends LayerSpec>(
  { spec, backend, rule }: BoundRule<Spec>,
  what: string,
  details: Readonly<Record<string, unknown>>,
  cause: unknown,
): MoeError {
  const withoutStop = what.replace(/\.\s*$/, '');
  return new MoeError(
    'MOE_DEVICE_KERNEL',
    `${backend.name}/${rule.id} on ${spec.name} ${withoutStop}. It is not used for layers like this one; report this to the plugin's author.`,
    {
      ...details,
      layer: spec.name,
      backend: backend.name,
      rule: rule.id,
      quarantine: quarantine(spec, backend.name, rule.id, `on ${spec.name} it ${withoutStop}`),
    },
    { cause },
  );
}

function keyOf<Spec extends LayerSpec>({ spec, backend, rule, tokens }: BoundRule<Spec>): string {
  return canonicalJson([backend.name, rule.id, tokens, layerClassOf(spec)]);
}
