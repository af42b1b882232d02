import { MoeError } from '@moe-server/core';
import type { Quarantine } from '@moe-server/core';
import { expect } from 'chai';
import { planAndLoad } from '../../src/composition/plan-and-load.js';

const wrong = (backend: string): MoeError =>
  new MoeError('MOE_DEVICE_KERNEL', `${backend} computes something else`, {
    quarantine: { backend, rule: 'r', kind: 'moe', layerClass: 'c', reason: 'it is wrong' } satisfies Quarantine,
  });

async function thrownBy(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => expect.fail('nothing was thrown'),
    (thrown: unknown) => thrown,
  );
}

describe('planAndLoad', () => {
  it('plans without every kernel that was refused, until one serves', async () => {
    const told: string[] = [];
    const loaded = await planAndLoad({
      plan: (quarantined) => ['a', 'b', 'c'].find((name) => !quarantined.some(({ backend }) => backend === name)) ?? 'none',
      load: (backend) => (backend === 'c' ? Promise.resolve('loaded c') : Promise.reject(wrong(backend))),
      onRefused: (sentence) => told.push(sentence),
    });
    expect(loaded).to.equal('loaded c');
    expect(told).to.deep.equal(['a computes something else', 'b computes something else']);
  });

  it('passes on what the plan says when nothing is left', async () => {
    const nothingLeft = new MoeError('MOE_UNSUPPORTED_LAYERS', 'nothing is left');
    const running = planAndLoad({
      plan: (quarantined) => {
        if (quarantined.length > 0) throw nothingLeft;
        return 'a';
      },
      load: (backend) => Promise.reject(wrong(backend)),
      onRefused: () => undefined,
    });
    expect(await thrownBy(running)).to.equal(nothingLeft);
  });

  it('passes on faults that are not a kernel’s', async () => {
    const disk = new MoeError('MOE_CHECKPOINT_READ', 'the disk is gone');
    expect(await thrownBy(planAndLoad({ plan: () => 'a', load: () => Promise.reject(disk), onRefused: () => undefined }))).to.equal(disk);
  });

  it('ends when a plan binds what was refused', async () => {
    let numLoads = 0;
    const load = (): Promise<never> => {
      numLoads++;
      return Promise.reject(wrong('a'));
    };
    expect(await thrownBy(planAndLoad({ plan: () => 'a', load, onRefused: () => undefined }))).to.have.property(
      'code',
      'MOE_DEVICE_KERNEL',
    );
    expect(numLoads).to.equal(2);
  });
});
