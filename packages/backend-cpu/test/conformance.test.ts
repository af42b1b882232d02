import { describeLinearBackend, describeMoeBackend } from '@moe-server/core/conformance';
import { deviceOf, instructionSets, linearBackend, moeBackend, runExperts, runLinear } from './device.js';

// Every rule of an instruction set runs on a device that has it; a device with less runs less, so each rule is forced by name once.
for (const isa of instructionSets()) {
  const device = deviceOf(isa);
  const only = <R extends { readonly id: string }>(rules: readonly R[]): readonly R[] => rules.filter(({ id }) => id.endsWith(`-${isa}`));
  describeMoeBackend({
    name: `cpu, ${isa}`,
    device,
    create: () => ({ ...moeBackend(), rules: only(moeBackend().rules) }),
    runExperts,
  });
  describeLinearBackend({
    name: `cpu, ${isa}`,
    device,
    create: () => ({ ...linearBackend(), rules: only(linearBackend().rules) }),
    runLinear,
  });
}
