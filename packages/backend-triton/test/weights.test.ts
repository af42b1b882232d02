import type { DeviceInfo } from '@moe-server/core';
import { SCHEME } from '@moe-server/core';
import {
  expertGroup,
  expertWeightsOf,
  linearSpec,
  linearWeightsOf,
  Random,
  randomExperts,
  randomModules,
} from '@moe-server/core/conformance';
import { expect } from 'chai';
import type { TritonScheme } from '../src/index.js';
import { TritonMoeBackend, TritonLinearBackend, expertRules, linearRules } from '../src/index.js';

const device: DeviceInfo = { type: 'cuda', name: 'a device', sm: 121, memoryBytes: undefined };
const schemes = [...new Set(expertRules.flatMap((rule) => rule.schemes))];

/** Weights of the schemes of this package, made by the core for any scheme. */
type Weights = Parameters<TritonMoeBackend['pack']>[2];

function ruleFor<R extends { readonly schemes: readonly TritonScheme[] }>(rules: readonly R[], scheme: TritonScheme): R {
  const rule = rules.find((one) => one.schemes.includes(scheme));
  if (rule === undefined) throw new RangeError(`no rule for ${scheme}`);
  return rule;
}

describe('experts packed by triton', () => {
  const backend = new TritonMoeBackend();
  for (const scheme of schemes) {
    // Odd counts of experts, one expert, and widths that fill no atom of scales.
    for (const [numExperts, hiddenSize, moeIntermediateSize] of [
      [1, 128, 64],
      [3, 256, 192],
      [7, 160, 96],
    ] as const) {
      it(`come back bit for bit: ${numExperts} of ${scheme}, ${hiddenSize} by ${moeIntermediateSize}`, async () => {
        const group = expertGroup({ w13: scheme, numExperts, hiddenSize, moeIntermediateSize, topK: 1, hasBias: numExperts === 3 });
        const rule = ruleFor(expertRules, scheme);
        const experts = randomExperts(group, new Random(numExperts));
        const packed = await backend.pack(group, rule, expertWeightsOf(experts) as Weights, { device });
        expect(packed.layout).to.equal(rule.layout);
        expect(packed[SCHEME]).to.deep.equal([scheme]);
        expect(packed.residentBytes).to.equal(backend.footprint(group, rule).residentBytes);
        experts.forEach((expert, slot) => {
          expect(backend.unpack(group, packed, slot)).to.deep.equal(expert);
        });
      });
    }
  }
});

describe('linears packed by triton', () => {
  const backend = new TritonLinearBackend();
  for (const scheme of schemes) {
    it(`come back bit for bit: ${scheme}, one module and several`, async () => {
      for (const outFeatures of [[128], [136, 24, 40]]) {
        const linear = linearSpec(scheme, 192, outFeatures, outFeatures.length > 1);
        const rule = ruleFor(linearRules, scheme);
        const modules = randomModules(linear, new Random(7));
        const weights = linearWeightsOf(modules) as Parameters<TritonLinearBackend['pack']>[2];
        const packed = await backend.pack(linear, rule, weights, { device });
        expect(packed.residentBytes).to.equal(backend.footprint(linear, rule).residentBytes);
        expect(backend.unpack(linear, packed)).to.deep.equal(modules.map(({ matrix }) => matrix));
      }
    });
  }
});
