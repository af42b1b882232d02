import { expect } from 'chai';
import { deviceProfile, deviceProfileNames } from '../src/device-profiles.js';
import { isMoeError } from '../src/errors.js';

describe('deviceProfile', () => {
  for (const [name, sm] of [
    ['gb10', 121],
    ['rtx-pro-6000', 120],
    ['b200', 100],
    ['h100', 90],
    ['h200', 90],
    ['a100', 80],
    ['l40s', 89],
  ] as const) {
    it(`knows ${name} with its compute capability and memory`, () => {
      const device = deviceProfile(name);
      expect(device).to.include({ type: 'cuda', sm });
      expect(device.memoryBytes).to.be.within(40e9, 180e9);
    });
  }

  for (const [name, sm] of [
    ['sm_90', 90],
    ['sm_121', 121],
    ['SM_90a', 90],
    ['sm120', 120],
  ] as const) {
    it(`takes ${name} for any device of that compute capability, its memory unknown`, () => {
      const device = deviceProfile(name);
      expect(device).to.include({ type: 'cuda', sm });
      expect(device.memoryBytes).to.equal(undefined);
    });
  }

  it('knows processors by what they can do', () => {
    const features = (name: string) => {
      const device = deviceProfile(name);
      return device.type === 'cpu' ? device.features : [];
    };
    expect(features('cpu-portable')).to.deep.equal([]);
    expect(features('cpu-avx2')).to.include('avx2').and.not.to.include('avx512f');
    expect(features('cpu-avx512')).to.include.members(['avx2', 'avx512f', 'avx512vnni', 'avx512bf16']);
  });

  it('takes cpu for the processor at hand', () => {
    const here = { type: 'cpu', name: 'this one', architecture: 'arm64', features: ['neon'], numThreads: 4, memoryBytes: 1e9 } as const;
    expect(deviceProfile('cpu', here)).to.equal(here);
    expect(deviceProfile('cpu').type).to.equal('cpu');
  });

  for (const name of ['gtx', 'sm_', 'sm_9', 'sm_1000', 'constructor', '']) {
    it(`refuses "${name}", listing the names`, () => {
      try {
        deviceProfile(name);
        expect.fail('it was accepted');
      } catch (error) {
        expect(isMoeError(error) ? error.code : error).to.equal('MOE_USAGE');
        expect((error as Error).message).to.contain(deviceProfileNames.join(', '));
      }
    });
  }
});
