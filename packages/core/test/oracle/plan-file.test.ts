import { expect } from 'chai';
import { isMoeError } from '../../src/errors.js';
import { plan } from '../../src/oracle/plan.js';
import { readPlanFile, writePlanFile } from '../../src/oracle/plan-file.js';
import type { Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import { expertGroup, gb10, gpuFamilies, linear, linearBackend, linearRule, registeredLinear } from './declared-backends.js';

const layers = [
  ...[0, 1, 2].map((index) => expertGroup(index, 'nvfp4.w4a4')),
  expertGroup(3, 'fp8.block128'),
  linear(0, 'bf16', { cachedAs: 'f8e4m3' }),
  linear(1, 'bf16'),
  linear(2, 'mxfp4.w4a16'),
];

function planOf(changes: Partial<PlanRequest> = {}): Plan {
  return plan({
    layers,
    device: gb10,
    moeBackends: gpuFamilies(),
    linearBackends: registeredLinear(linearBackend('rows', 1, [linearRule('bf16', ['bf16'])])),
    maxNumTokens: 1024,
    ...changes,
  });
}

const asJson = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe('writePlanFile', () => {
  it('writes what readPlanFile reads back', () => {
    const made = planOf();
    const plugins = [
      { name: 'triton', version: '0.2.0' },
      { name: 'b12x', version: '0.1.0' },
    ];
    const read = readPlanFile(writePlanFile(made, plugins), 'plan.lock.json');
    expect(asJson(read.plan)).to.deep.equal(asJson(made));
    expect(read.plugins.map(({ name }) => name)).to.deep.equal(['b12x', 'triton']);
  });

  it('gives the same text for the same plan, in whatever order it was asked for', () => {
    const reversed = planOf({ layers: [...layers].reverse(), moeBackends: [...gpuFamilies()].reverse() });
    expect(writePlanFile(reversed)).to.equal(writePlanFile(planOf()));
    expect(writePlanFile(readPlanFile(writePlanFile(planOf()), 'p').plan)).to.equal(writePlanFile(planOf()));
  });

  it('has a line for each layer, and judges that are alike once', () => {
    const lines = writePlanFile(planOf()).split('\n');
    expect(lines.filter((line) => line.includes('"name":"model.layers.'))).to.have.length(layers.length);
    expect(lines.filter((line) => line.startsWith('{"eligible"'))).to.have.length(4);
  });
});

describe('readPlanFile', () => {
  const text = writePlanFile(planOf());
  const changed = (change: (file: Record<string, unknown>) => void): string => {
    const file = JSON.parse(text) as Record<string, unknown>;
    change(file);
    return JSON.stringify(file);
  };
  const firstLayer = (file: Record<string, unknown>) => (file.layers as Record<string, unknown>[])[0] ?? {};

  it('reads the output of "plan --json" too', () => {
    const made = planOf();
    expect(asJson(readPlanFile(JSON.stringify(made, undefined, 2), 'old.json').plan)).to.deep.equal(asJson(made));
  });

  const faults: [what: string, text: string, field: string, message: string][] = [
    ['a file that is cut off', text.slice(0, text.length / 2), '', 'it is not JSON, or not all of it is there'],
    ['an empty file', '', '', 'it is not JSON, or not all of it is there'],
    ['JSON of another kind', '{"name":"x","version":1}', '', 'it is JSON, but not a plan'],
    ['a lock file of npm', '{"name":"x","lockfileVersion":3,"packages":{}}', '', 'it is JSON, but not a plan'],
    ['a list', '[]', '', 'it is JSON, but not a plan'],
    ['another version', changed((file) => (file.version = 2)), 'version', 'it is a plan of version 2, and this release reads version 1'],
    [
      'a device of no kind',
      changed((file) => (file.device = { type: 'tpu', name: 'x' })),
      'device.type',
      'device.type must be "cpu" or "cuda"; it is "tpu"',
    ],
    [
      'a layer without a name',
      changed((file) => delete firstLayer(file).name),
      'layers[0].name',
      'layers[0].name must be a name; it is left out',
    ],
    [
      'a layer twice',
      changed((file) => (file.layers as unknown[]).push(firstLayer(file))),
      `layers[${layers.length}].name`,
      'must be a name that no other layer has; it is "model.layers.0.mlp.experts"',
    ],
    [
      'an interval with a gap',
      changed((file) => ((firstLayer(file).bindings as { tokens: unknown }[])[0]!.tokens = { min: 2, max: 1024 })),
      'layers[0].bindings[0].tokens',
      'must be an interval that begins at 1; it is {"min":2,"max":1024}',
    ],
    [
      'a cache of no type that is known',
      changed((file) => (firstLayer(file).cachedAs = 'int4')),
      'layers[0].cachedAs',
      'layers[0].cachedAs must be "f8e4m3" or left out; it is "int4"',
    ],
    [
      'an explanation that is not there',
      changed((file) => (firstLayer(file).explanation = 99)),
      'layers[0].explanation',
      'must be the position of an entry of "explanations"; it is 99',
    ],
    [
      'a kernel that somebody changed by hand',
      changed((file) => ((firstLayer(file).bindings as { backend: string }[])[0]!.backend = 'cutlass')),
      'hash',
      'its layers do not have the hash that it states: it was edited or damaged',
    ],
  ];
  for (const [what, faulty, field, message] of faults) {
    it(`refuses ${what}`, () => {
      try {
        readPlanFile(faulty, 'plan.lock.json');
      } catch (error) {
        if (!isMoeError(error)) throw error;
        expect(error.code).to.equal('MOE_PLAN_FILE');
        expect(error.details).to.include({ file: 'plan.lock.json', field });
        expect(error.message).to.match(/^plan\.lock\.json: .*\. A plan is what "moe-server plan --out FILE" writes; make it anew\.$/s);
        expect(error.message).to.contain(message);
        return;
      }
      throw new Error('it was read');
    });
  }
});
