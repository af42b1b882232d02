import type {
  CpuFeature,
  DeviceInfo,
  DeviceSupport,
  ErasedLinearBackend,
  ErasedMoeBackend,
  ExpertSupportRule,
  LinearSupportRule,
} from '@moe-server/core';

/** One rule of one backend as `backends --json` prints it: all that it declares, and what this installation has of it. */
export interface DeclaredRule {
  readonly backend: string;
  readonly kind: 'moe' | 'linear';
  readonly plugin: string;
  /** Name of the rule, as plans have it. */
  readonly rule: string;
  readonly declares: Omit<ExpertSupportRule, 'id'> | Omit<LinearSupportRule, 'id'>;
  readonly built: boolean;
  /** Why not, as a sentence. */
  readonly notBuilt?: string;
  /** Built, and for a device like this one. */
  readonly runsHere: boolean;
}

/** Every rule of a backend, judged for a device. */
export function declaredRules(backend: ErasedMoeBackend | ErasedLinearBackend, device: DeviceInfo): DeclaredRule[] {
  return backend.rules.map(({ id, ...declares }) => {
    const notBuilt = backend.missing(id);
    return {
      backend: backend.name,
      kind: backend.kind,
      plugin: backend.plugin,
      rule: id,
      declares,
      built: notBuilt === undefined,
      ...(notBuilt === undefined ? {} : { notBuilt }),
      runsHere: notBuilt === undefined && isFor(declares.device, device),
    };
  });
}

function isFor(support: DeviceSupport, device: DeviceInfo): boolean {
  if (support.type === 'cpu') {
    if (device.type !== 'cpu') return false;
    const has = (feature: CpuFeature): boolean => device.features.includes(feature);
    return (
      (support.features ?? []).every(has) && (support.architectures ?? [device.architecture]).some((one) => one === device.architecture)
    );
  }
  if (device.type !== 'cuda') return false;
  const { sm } = support;
  return 'length' in sm ? sm.includes(device.sm) : device.sm >= (sm.min ?? 0) && device.sm <= (sm.max ?? Infinity);
}
