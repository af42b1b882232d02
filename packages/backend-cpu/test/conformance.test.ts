import { describeLinearBackend, describeMoeBackend } from '@moe-server/core/conformance';
import { RunnableLinearBackend, RunnableMoeBackend, deviceOf, instructionSets, runExperts, runLinear } from './device.js';

// The rules of every instruction set that this processor has, each on a device that has no other: so each is judged, and judged once.
for (const isa of instructionSets()) {
  const device = deviceOf(isa);
  describeMoeBackend({ name: `cpu, ${isa}`, device, create: () => new RunnableMoeBackend(isa), runExperts });
  describeLinearBackend({ name: `cpu, ${isa}`, device, create: () => new RunnableLinearBackend(isa), runLinear });
}
