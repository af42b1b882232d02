import { expect } from 'chai';
import { plan } from '../../src/oracle/plan.js';
import { checkLock, diffPlans, explainBrokenLock } from '../../src/oracle/plan-diff.js';
import { readPlanFile, writePlanFile } from '../../src/oracle/plan-file.js';
import type { Plan, PlanRequest } from '../../src/oracle/plan-types.js';
import {
  expertGroup,
  expertRule,
  gb10,
  gpuFamilies,
  linear,
  linearBackend,
  linearRule,
  moeBackend,
  registered,
  registeredLinear,
} from './declared-backends.js';

const layers = [...[0, 1, 2].map((index) => expertGroup(index, 'nvfp4.w4a4')), expertGroup(3, 'fp8.block128')];

function planOf(changes: Partial<PlanRequest> = {}): Plan {
  return plan({ layers, device: gb10, moeBackends: gpuFamilies(), linearBackends: [], maxNumTokens: 1024, ...changes });
}

const without = (...names: readonly string[]) => gpuFamilies().filter(({ name }) => !names.includes(name));
const kept = (made: Plan): Plan => readPlanFile(writePlanFile(made), 'plan.lock.json').plan;
const forbidden = planOf({
  preferences: [{ effect: 'forbid', backend: 'b12x', scope: {}, source: { type: 'flag', text: "--moe-backend '!b12x'" } }],
});
const nvfp4Layers = 'experts nvfp4.w4a4 (model.layers.0.mlp.experts … model.layers.2.mlp.experts, 3 layers)';

describe('diffPlans', () => {
  it('finds nothing between equal plans', () => {
    expect(diffPlans(kept(planOf()), planOf())).to.deep.equal({ changes: [], sentences: [] });
  });

  it('says which layers moved, from where, to where, and that the old kernel is refused', () => {
    const { changes, sentences } = diffPlans(planOf(), forbidden);
    expect(changes.map(({ name, change }) => [name, change])).to.deep.equal(
      [0, 1, 2].map((index) => [`model.layers.${index}.mlp.experts`, 'moved']),
    );
    expect(changes[0]?.from[0]).to.include({ backend: 'b12x', rule: 'w4a16' });
    expect(changes[0]?.to[0]).to.include({ backend: 'cutlass', rule: 'nvfp4' });
    expect(sentences).to.deep.equal([
      `${nvfp4Layers} moved from b12x/w4a16 to cutlass/nvfp4: b12x/w4a16 is refused now: --moe-backend '!b12x' (flag) forbids it here.`,
    ]);
  });

  it('says on the way back why the new kernel had been refused', () => {
    expect(diffPlans(forbidden, planOf()).sentences).to.deep.equal([
      `${nvfp4Layers} moved from cutlass/nvfp4 to b12x/w4a16: cutlass/nvfp4 still covers it, but b12x/w4a16 was taken ` +
        "(priority 100, the highest of 4 rules that cover it (first by name among equals)); b12x/w4a16 was refused then: --moe-backend '!b12x' (flag) forbids it here.",
    ]);
  });

  it('tells a backend that is gone from a rule that is gone', () => {
    const gone = diffPlans(planOf(), planOf({ moeBackends: without('b12x') })).sentences.join('\n');
    expect(gone).to.contain('moved from b12x/w4a16 to cutlass/nvfp4: no backend named b12x is installed any more.');
    const smaller = registered(moeBackend('b12x', 1, [expertRule('w4a4', ['nvfp4.w4a4'])]));
    const changed = diffPlans(planOf(), planOf({ moeBackends: [...without('b12x'), ...smaller] })).sentences.join('\n');
    expect(changed).to.contain('b12x has no rule w4a16 any more');
  });

  it('says that a kernel is new, that a layer is unserved, new or gone', () => {
    const fewer = planOf({ moeBackends: without('cutlass', 'triton') });
    expect(diffPlans(fewer, planOf()).sentences).to.deep.equal([
      'Packed weights take 56.0 MiB now and took 20.2 MiB.'
        .replace('56.0', (planOf().bytes.residentBytes / 2 ** 20).toFixed(1))
        .replace('20.2', (fewer.bytes.residentBytes / 2 ** 20).toFixed(1)),
      'experts fp8.block128 (model.layers.3.mlp.experts) moved from nobody to cutlass/fp8: cutlass/fp8 is new.',
    ]);
    expect(diffPlans(planOf(), fewer).sentences.join('\n')).to.contain(
      'moved from cutlass/fp8 to nobody: no backend named cutlass is installed any more.',
    );
    const longer = planOf({ layers: [...layers, expertGroup(4, 'bf16')] });
    expect(diffPlans(planOf(), longer).sentences.join('\n')).to.contain(
      'experts bf16 (model.layers.4.mlp.experts): new, served by triton/bf16.',
    );
    expect(diffPlans(longer, planOf()).sentences.join('\n')).to.contain(
      'experts bf16 (model.layers.4.mlp.experts): gone; triton/bf16 served it.',
    );
  });

  it('names what changed within a rule: layout, numerics, whether it is built', () => {
    const one = (changes: Parameters<typeof expertRule<'bf16'>>[2], missing?: string) =>
      planOf({
        layers: [expertGroup(0, 'bf16')],
        moeBackends: registered(
          moeBackend('one', 1, [expertRule('r', ['bf16'], changes)], missing === undefined ? {} : { missing: () => missing }),
        ),
        assumeBuilt: true,
        numerics: { default: 'approximate' },
      });
    const { arithmetic } = expertRule('r', ['bf16']);
    const [sentence] = diffPlans(
      one({ layout: 'one/rows@1' }, 'Not yet.'),
      one({ layout: 'one/rows@2', arithmetic: { ...arithmetic, accumulator: 'f16' } }),
    ).sentences;
    expect(sentence).to.equal(
      'experts bf16 (model.layers.0.mlp.experts): one/r reads the layout one/rows@2 now and read one/rows@1; ' +
        'the numerics of one/r are "approximate" now and were "same"; the kernel of one/r is built now.',
    );
  });

  it('names a KV cache that rounds to another type where that moved a kernel', () => {
    const backend = linearBackend('rows', 1, [linearRule('exact', ['bf16']), linearRule('fast', ['bf16'])]);
    const refuse: typeof backend.refuse = ({ cachedAs }, { id }) =>
      cachedAs === undefined || id === 'exact' ? undefined : { dimension: 'backend', message: 'it is not exact.' };
    const priority: typeof backend.priority = (_, { id }) => (id === 'fast' ? 2 : 1);
    const linearBackends = registeredLinear({ ...backend, priority, refuse });
    const stored = planOf({ layers: [linear(0, 'bf16')], linearBackends });
    const rounded = planOf({ layers: [linear(0, 'bf16', { cachedAs: 'f8e4m3' })], linearBackends });
    expect(diffPlans(stored, rounded).sentences.join('\n')).to.contain(
      'moved from rows/fast to rows/exact: its keys and values are cached as f8e4m3 now and were as bf16; rows/fast is refused now: it is not exact',
    );
  });

  it('does not take longer calls for a change of every layer', () => {
    const { changes, sentences } = diffPlans(planOf(), planOf({ maxNumTokens: 8192 }));
    expect(changes).to.deep.equal([]);
    expect(sentences).to.deep.equal(['Calls bring up to 8192 tokens now and brought up to 1024.']);
    expect(diffPlans(planOf({ maxNumTokens: 8192 }), planOf()).changes).to.deep.equal([]);
  });

  it('shows a switch point that moved', () => {
    const split = (max: number) =>
      planOf({
        layers: [expertGroup(0, 'bf16')],
        moeBackends: registered(
          moeBackend('fast', 2, [expertRule('r', ['bf16'], { tokens: { max }, layout: 'any/rows@1' })]),
          moeBackend('any', 1, [expertRule('r', ['bf16'], { layout: 'any/rows@1' })]),
        ),
      });
    expect(diffPlans(split(64), split(32)).sentences).to.deep.equal([
      'experts bf16 (model.layers.0.mlp.experts) moved from fast/r (1–64) and any/r (65–1024) to fast/r (1–32) and any/r (33–1024): ' +
        'fast/r takes calls of 1 to 32 tokens now and took 1 to 64; any/r takes calls of 33 to 1024 tokens now and took 65 to 1024.',
    ]);
  });

  it('names devices and plugins that differ', () => {
    const file = (device: PlanRequest['device'], version: string, ...more: readonly string[]) => ({
      plan: planOf({ device }),
      plugins: [{ name: 'b12x', version }, ...more.map((name) => ({ name, version: '1.0.0' }))],
    });
    const pro = { ...gb10, name: 'NVIDIA RTX PRO 6000 Blackwell', sm: 120 };
    expect(diffPlans(file(gb10, '0.1.0', 'old'), file(pro, '0.2.0', 'new')).sentences).to.deep.equal([
      'The device is NVIDIA RTX PRO 6000 Blackwell (SM 12.0) now and was NVIDIA GB10 (SM 12.1).',
      'The plugin b12x is of version 0.2.0 now and was of 0.1.0.',
      'The plugin new 1.0.0 is new.',
      'The plugin old 1.0.0 is gone.',
    ]);
  });
});

describe('checkLock', () => {
  it('holds for the same decision, also on another device and once kernels are built', () => {
    expect(checkLock(kept(planOf()), planOf())).to.deep.equal([]);
    expect(checkLock(kept(planOf()), planOf({ device: { ...gb10, name: 'another', sm: 120 } }))).to.deep.equal([]);
    const declared = (missing: string | undefined) =>
      planOf({
        layers: [expertGroup(0, 'bf16')],
        moeBackends: registered(moeBackend('one', 1, [expertRule('r', ['bf16'])], { missing: () => missing })),
        assumeBuilt: true,
      });
    expect(checkLock(kept(declared('Not yet.')), declared(undefined))).to.deep.equal([]);
    expect(checkLock(kept(declared(undefined)), declared('Gone.'))).to.have.length(1);
  });

  it('lists the layers that moved, and one error says which, where and why', () => {
    const changes = checkLock(kept(planOf()), forbidden);
    expect(changes.map(({ name }) => name)).to.deep.equal([0, 1, 2].map((index) => `model.layers.${index}.mlp.experts`));
    const error = explainBrokenLock(changes, 'plan.lock.json');
    expect(error.code).to.equal('MOE_PLAN_MOVED');
    expect(error.details.changes).to.equal(changes);
    expect(error.message).to.equal(
      `The plan in plan.lock.json no longer holds for 3 layers:\n  ${nvfp4Layers} moved from b12x/w4a16 to cutlass/nvfp4: ` +
        "b12x/w4a16 is refused now: --moe-backend '!b12x' (flag) forbids it here.\n" +
        'Restore what it was made with, or accept the change with "moe-server plan --out plan.lock.json".',
    );
  });

  it('does not hold when calls are longer than a kernel of it takes', () => {
    const moeBackends = registered(
      moeBackend('short', 2, [expertRule('r', ['bf16'], { tokens: { max: 1024 } })]),
      moeBackend('any', 1, [expertRule('r', ['bf16'])]),
    );
    const bf16 = [expertGroup(0, 'bf16')];
    const changes = checkLock(planOf({ layers: bf16, moeBackends }), planOf({ layers: bf16, moeBackends, maxNumTokens: 2048 }));
    expect(changes.map(({ why }) => why)).to.deep.equal([
      'short/r still covers it, but any/r was taken (priority 1; short/r comes first, but takes calls of 1 to 1024 tokens only and would keep the weights twice)',
    ]);
  });

  it('does not hold for a checkpoint with other layers or schemes', () => {
    const other = planOf({
      layers: [expertGroup(0, 'fp8.block128'), expertGroup(1, 'nvfp4.w4a4'), expertGroup(2, 'nvfp4.w4a4'), expertGroup(9, 'bf16')],
    });
    expect(checkLock(planOf(), other).map(({ name, change, why }) => [name, change, why])).to.deep.equal([
      [
        'model.layers.0.mlp.experts',
        'moved',
        'its weights are fp8.block128 now and were nvfp4.w4a4; b12x/w4a16 is refused now: it runs nvfp4.w4a4 and nvfp4.w4a16; these weights are fp8.block128; cutlass/fp8 was refused then: ' +
          'it runs fp8.tensor.static, fp8.channel and fp8.block128; these weights are nvfp4.w4a4',
      ],
      ['model.layers.9.mlp.experts', 'added', 'the older plan has no such layer'],
      ['model.layers.3.mlp.experts', 'removed', 'the newer plan has no such layer'],
    ]);
  });
});
