import { deriveNumerics, type Arithmetic, type NumericsClass } from '../arithmetic.js';
import type { Refusal } from '../backend.js';
import { schemeFamily, schemeInfo } from '../quant/quant-scheme.js';
import { refusal } from './dimensions.js';
import type { NumericsChoice, NumericsPolicy } from './plan-types.js';

const worstFirst: readonly NumericsClass[] = ['approximate', 'wider', 'same'];
const allowedBy: Readonly<Record<NumericsChoice, readonly NumericsClass[]>> = {
  auto: ['same', 'wider'],
  same: ['same'],
  wider: ['wider'],
  float32: ['same', 'wider'],
  approximate: ['same', 'wider', 'approximate'],
};

/** The class of a rule on a layer of these schemes: that of the worse projection. `undefined` when a scheme is not defined. */
export function numericsOf(schemes: readonly string[], arithmetic: Arithmetic): NumericsClass | undefined {
  const classes = schemes.map((key) => classOf(key, arithmetic));
  if (classes.includes(undefined)) return undefined;
  return worstFirst.find((one) => classes.includes(one));
}

/** The refusal of a rule whose arithmetic the policy does not allow. */
export function numericsRefusal(schemes: readonly string[], arithmetic: Arithmetic, policy: NumericsPolicy): Refusal | undefined {
  for (const key of schemes) {
    const actual = classOf(key, arithmetic);
    // The scheme dimension says it already.
    if (actual === undefined) continue;
    const choice = choiceFor(key, policy);
    // Where the scheme leaves inputs alone there is nothing wider than "same".
    const isWeightOnly = schemeInfo(key)?.input.type === 'none';
    const allowed = choice === 'wider' && isWeightOnly ? allowedBy.same : allowedBy[choice];
    if (!allowed.includes(actual)) {
      return refusal('numerics', `its arithmetic on ${key} is "${actual}" and --numerics ${choice} does not allow that`, allowed, actual);
    }
    const coarse = choice === 'float32' ? belowFloat32(arithmetic) : undefined;
    if (coarse !== undefined) return refusal('numerics', `it ${coarse} and --numerics float32 does not allow that`, allowed, actual);
  }
  return undefined;
}

/** What arithmetic whose class is not `approximate` rounds to a coarser type than float32. */
function belowFloat32({ input, intermediate, output }: Arithmetic): string | undefined {
  if (input.type !== 'float') return 'quantizes inputs';
  if (input.dtype !== 'f32') return `rounds inputs to ${input.dtype}`;
  const coarse = [intermediate, output].find((dtype) => dtype !== 'f32');
  return coarse === undefined ? undefined : `rounds what it computes to ${coarse}`;
}

function choiceFor(scheme: string, policy: NumericsPolicy): NumericsChoice {
  return policy.byScheme?.[scheme] ?? policy.byScheme?.[schemeFamily(scheme)] ?? policy.default;
}

function classOf(key: string, arithmetic: Arithmetic): NumericsClass | undefined {
  const info = schemeInfo(key);
  return info === undefined ? undefined : deriveNumerics(info, arithmetic);
}
