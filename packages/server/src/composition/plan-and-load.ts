import { messageOf, quarantineOf } from '@moe-server/core';
import type { Quarantine } from '@moe-server/core';

export interface PlanAndLoad<Plan, Loaded> {
  /** @throws when some layer is left without a kernel. */
  readonly plan: (quarantined: readonly Quarantine[]) => Plan;
  /** Frees what it made when it throws. */
  readonly load: (plan: Plan) => Promise<Loaded>;
  /** A kernel was refused; a new plan without it follows. @param sentence - what happened, with the numbers. */
  readonly onRefused: (sentence: string) => void;
}

/**
 * Plans and loads. A kernel that cannot be made, or does not compute what its rule declares, is quarantined for layers like the one it failed on, and
 * everything is planned and loaded anew: so the plan always names the kernels that run, its sum of bytes holds, and preferences apply to what
 * is left.
 *
 * @throws what `plan` throws once nothing is left for a layer; every other fault of `load`.
 */
export async function planAndLoad<Plan, Loaded>({ plan, load, onRefused }: PlanAndLoad<Plan, Loaded>): Promise<Loaded> {
  const quarantined: Quarantine[] = [];
  for (;;) {
    const made = plan(quarantined);
    try {
      return await load(made);
    } catch (thrown) {
      const entry = quarantineOf(thrown);
      // A plan that binds a rule in spite of its quarantine would be refused for ever.
      if (entry === undefined || quarantined.some((one) => isSameRule(one, entry))) throw thrown;
      quarantined.push(entry);
      onRefused(messageOf(thrown));
    }
  }
}

function isSameRule(a: Quarantine, b: Quarantine): boolean {
  return a.backend === b.backend && a.rule === b.rule && a.kind === b.kind && a.layerClass === b.layerClass;
}
