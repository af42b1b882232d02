import { expect } from 'chai';
import { cpuDeviceProblem } from '../../src/device/cpu-device.js';
import { describeCpuRates, dotRate, measureBandwidth, measureCpuRates } from '../../src/device/cpu-rates.js';

describe('what the processor can do at most', function () {
  this.timeout(20_000);
  before(function () {
    if (cpuDeviceProblem() !== undefined) this.skip();
  });

  it('measures bandwidth', async () => {
    expect(await measureBandwidth({ numThreads: 2, totalBytes: 2 ** 22, pieceBytes: 2 ** 18 })).to.be.greaterThan(0.1);
  });

  it('says when there is no memory to measure it in', async () => {
    const error = await measureBandwidth({ numThreads: 1, totalBytes: 2 ** 51 }).catch((thrown: unknown) => thrown);
    expect(error).to.have.property('code', 'MOE_DEVICE_MEMORY');
  });

  it('measures dot products by what is multiplied', async () => {
    const { numThreads, bandwidth, dots } = await measureCpuRates({ numThreads: 1 });
    expect(numThreads).to.equal(1);
    expect(bandwidth).to.be.greaterThan(0.1);
    expect(dots.f32).to.be.greaterThan(0.1);
    for (const type of ['int8', 'bf16'] as const) expect(dots[type] ?? 1).to.be.greaterThan(0.1);
  });

  it('takes the rate of float32 where the processor has no instruction for a type', () => {
    const rates = { numThreads: 1, bandwidth: 10, dots: { int8: 400, bf16: undefined, f32: 100 } };
    expect(dotRate(rates, 'int8')).to.equal(400);
    expect(dotRate(rates, 'bf16')).to.equal(100);
  });

  it('says in one line what there is', () => {
    const rates = { numThreads: 2, bandwidth: 33.06, dots: { int8: 930, bf16: undefined, f32: 232.4 } };
    expect(describeCpuRates(rates)).to.equal('2 threads: random 1.5 MiB pieces 33.1 GB/s, dot products int8 930, f32 232 Gop/s');
  });
});
