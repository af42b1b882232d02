import type { CpuDeviceInfo, CpuFeature, ExpertsArgs, Kernel, LinearArgs } from '@moe-server/core';
import type { CpuScheme, InstructionSet, KernelExternal } from '../src/index.js';
import { CpuLinearBackend, CpuMoeBackend, cpuAddon, expertRules, linearRules } from '../src/index.js';

/** Threads of the addon's test pool: more than one, so that work is split. */
export const numThreads = 2;

/** The instruction sets that this processor has. */
export function instructionSets(): readonly InstructionSet[] {
  return cpuAddon().instructionSets();
}

/** A processor of an instruction set: exactly the features that its kernels ask for. */
export function deviceOf(isa: InstructionSet): CpuDeviceInfo {
  const rule = expertRules.find(({ id }) => id === `bf16-${isa}`);
  const features: readonly CpuFeature[] = rule?.device.type === 'cpu' ? (rule.device.features ?? []) : [];
  return {
    type: 'cpu',
    name: `a processor with ${isa}`,
    architecture: isa === 'neon' ? 'arm64' : 'x64',
    features,
    numThreads,
    memoryBytes: undefined,
  };
}

/** Sizes of kernels, which the arguments of the contract leave out. */
const sizes = new WeakMap<Kernel, readonly [number, number]>();

/** A backend whose kernels {@link runExperts} can run; with an instruction set, only its rules. */
export class RunnableMoeBackend extends CpuMoeBackend {
  override readonly rules;
  readonly #plain = new CpuMoeBackend();

  constructor(isa?: InstructionSet) {
    super();
    this.rules = rulesFor(expertRules, isa);
  }

  override readonly createKernel: CpuMoeBackend['createKernel'] = async (group, rule, packed, context) => {
    const kernel = await this.#plain.createKernel(group, rule, packed, context);
    sizes.set(kernel, [group.hiddenSize, group.hiddenSize]);
    return kernel;
  };
}

/** A backend whose kernels {@link runLinear} can run; with an instruction set, only its rules. */
export class RunnableLinearBackend extends CpuLinearBackend {
  override readonly rules;
  readonly #plain = new CpuLinearBackend();

  constructor(isa?: InstructionSet) {
    super();
    this.rules = rulesFor(linearRules, isa);
  }

  override readonly createKernel: CpuLinearBackend['createKernel'] = async (linear, rule, packed, context) => {
    const kernel = await this.#plain.createKernel(linear, rule, packed, context);
    sizes.set(kernel, [linear.inFeatures, linear.outFeatures]);
    return kernel;
  };
}

function rulesFor<R extends { readonly id: string }>(rules: readonly R[], isa: InstructionSet | undefined): readonly R[] {
  return isa === undefined ? rules : rules.filter(({ id }) => id.endsWith(`-${isa}`));
}

function opened(kernel: Kernel): { readonly external: KernelExternal; readonly inputWidth: number; readonly outputWidth: number } {
  const known = sizes.get(kernel);
  if (kernel.entry.type !== 'native' || known === undefined) throw new TypeError('expected a kernel of a runnable backend');
  return { external: kernel.entry.external as KernelExternal, inputWidth: known[0], outputWidth: known[1] };
}

/** Runs an experts kernel on the addon's own pool. */
export function runExperts(kernel: Kernel, args: ExpertsArgs): void {
  const { external, inputWidth } = opened(kernel);
  cpuAddon().runExperts(external, { ...args, hiddenSize: inputWidth }, numThreads);
}

/** Runs a linear kernel on the addon's own pool. */
export function runLinear(kernel: Kernel, args: LinearArgs): void {
  const { external, inputWidth, outputWidth } = opened(kernel);
  cpuAddon().runLinear(external, { ...args, inFeatures: inputWidth, outFeatures: outputWidth }, numThreads);
}

/** The rule of either kind with this id. */
export function ruleOf<R extends { readonly id: string }>(rules: readonly R[], id: string): R {
  const rule = rules.find((one) => one.id === id);
  if (rule === undefined) throw new RangeError(`there is no rule ${id}`);
  return rule;
}

/** Schemes whose inputs are quantized: those that have *same* and *wider*. */
export const quantizedSchemes: readonly CpuScheme[] = [
  'nvfp4.w4a4',
  'fp8.tensor.static',
  'fp8.tensor.dynamic',
  'fp8.channel',
  'fp8.block128',
];
