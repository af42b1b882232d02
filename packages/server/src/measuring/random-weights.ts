import { Random, SCHEME, schemeInfo } from '@moe-server/core';
import type { ExpertGroupSpec, ExpertWeights, LinearSpec, LinearWeights } from '@moe-server/core';
import { expertWeightsOf, fillBf16, linearWeightsOf, randomExperts, randomMatrix, randomModules } from '@moe-server/core/conformance';
import type { MatrixFactory } from '@moe-server/core/conformance';

/** The same weights in every run. */
const seed = 20_260_101;

/** Whether there are random weights of a scheme; plugins may define others. */
export function hasRandomWeights(scheme: string): boolean {
  const columns = 128;
  try {
    randomMatrix(scheme as 'bf16', 1, columns, new Random(seed), { inputAmax: 1 });
    return schemeInfo(scheme) !== undefined;
  } catch {
    return false;
  }
}

/** One random expert in every slot: kernels read each from its own place, and cannot know that they are equal. */
export function randomExpertWeights(group: ExpertGroupSpec): ExpertWeights {
  const [first] = randomExperts({ ...group, experts: group.experts.slice(0, 1) }, new Random(seed), quickMatrix);
  return expertWeightsOf(first === undefined ? [] : group.experts.map(() => first));
}

/** Random weights for every module of a linear. */
export function randomLinearWeights(linear: LinearSpec): LinearWeights {
  return linearWeightsOf(randomModules(linear, new Random(seed), quickMatrix));
}

/** As randomMatrix, but bf16 without a logarithm and a cosine for every number of a large matrix. */
const quickMatrix: MatrixFactory = (scheme, rows, columns, random, options) => {
  if (scheme !== 'bf16' || (rows * columns) % 2 !== 0) return randomMatrix(scheme, rows, columns, random, options);
  const values = new Uint16Array(rows * columns);
  fillBf16(new Uint8Array(values.buffer), 1 / Math.sqrt(columns), random);
  return { [SCHEME]: 'bf16', rows, columns, values } as ReturnType<typeof randomMatrix<typeof scheme>>;
};
