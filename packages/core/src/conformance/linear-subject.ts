import type { LinearBackend, LinearSupportRule } from '../backend.js';
import type { LinearSpec } from '../layer-spec.js';
import { expectEqual } from './comparison.js';
import { codeBytesPerWeight, mostTokens } from './experts-subject.js';
import { linearWeightsOf, randomModules } from './layers.js';
import { Random } from '../random.js';
import { referenceLinear } from '../reference/reference-layers.js';
import { clampTo } from './sizes.js';
import { storedCopy } from './stored-copy.js';
import type { Subject } from './subject.js';
import { invokeKernel } from './suite.js';
import type { SuiteContext } from './suite.js';
import { toleranceFor } from '../reference/tolerance.js';

/** Packs a random linear for a rule and makes a kernel on it. */
export async function openLinearSubject(
  context: SuiteContext,
  backend: LinearBackend,
  rule: LinearSupportRule,
  linear: LinearSpec,
): Promise<Subject> {
  const { options, seed, decode } = context;
  const { device } = options;
  const modules = randomModules(linear, new Random(seed).fork(-2), context.makeMatrix);
  const packed = await backend.pack(linear, rule, linearWeightsOf(modules), { device });
  const maxNumTokens = clampTo(rule.tokens, mostTokens);
  const createKernel: Subject['createKernel'] = (weights = packed) => backend.createKernel(linear, rule, weights, { device, maxNumTokens });
  const { inFeatures, outFeatures, scheme } = linear;
  const name = `${backend.name}/${rule.id}, ${scheme}, ${String(outFeatures)}x${String(inFeatures)} in ${String(modules.length)} modules, seed ${String(seed)}`;
  return {
    context: name,
    inputWidth: inFeatures,
    outputWidth: outFeatures,
    arithmetic: rule.arithmetic,
    schemes: [scheme],
    layout: rule.layout,
    packed,
    kernel: await createKernel(),
    footprint: backend.footprint(linear, rule),
    codeBytes: inFeatures * outFeatures * codeBytesPerWeight(scheme),
    maxNumTokens,
    reference: ({ numTokens, rows }) => referenceLinear({ numTokens, input: rows, linear, arithmetic: rule.arithmetic, modules, decode }),
    tolerance: ({ numTokens }) => {
      const counts = { inputs: numTokens * inFeatures, intermediates: 0, outputs: numTokens * outFeatures, columns: inFeatures };
      return toleranceFor({ first: scheme }, rule.arithmetic, counts);
    },
    invoke: (kernel, call, output, accumulate) => invokeKernel(kernel, call, output, accumulate, options),
    createKernel,
    stored: storedCopy(name, backend.storage, { spec: linear, rule, packed, context: { device } }),
    expectUnpacked: (weights = packed) => {
      const matrices = modules.map(({ matrix }) => matrix);
      expectEqual(backend.unpack(linear, weights), matrices, `${name}: unpack`);
    },
  };
}
