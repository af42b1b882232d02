import { expect } from 'chai';
import { createTypescriptDevice } from '../../src/device/typescript-device.js';
import { ActivationBuffers } from '../../src/layers/activation-buffers.js';
import { StepEncoder } from '../../src/layers/step-encoder.js';
import { matrixKernel } from './plain-weights.js';

const limits = { maxNumTokens: 64, maxNumSeqs: 1, maxLogitRows: 4, maxBlocksPerSeq: 1, maxAdjustments: 1 };
const [small, large, any] = [matrixKernel([[1]]), matrixKernel([[2]]), matrixKernel([[3]])];
const bySize = [
  { kernel: small, tokens: { min: 1, max: 8 } },
  { kernel: large, tokens: { min: 9, max: 64 } },
];

function encoderFor(tokens: number, logitRows: number): StepEncoder {
  return new StepEncoder(new ActivationBuffers(createTypescriptDevice(), limits), { tokens, logitRows });
}

describe('StepEncoder', () => {
  it('takes the kernel for the rows of the recording', () => {
    const encoder = encoderFor(20, 2);
    expect(encoder.choose(bySize, 'tokens')).to.equal(large);
    expect(encoder.choose(bySize, 'logitRows')).to.equal(small);
  });

  it('narrows the sizes that the recording holds for to what all chosen kernels take', () => {
    const encoder = encoderFor(8, 0);
    encoder.choose(bySize, 'tokens');
    encoder.choose([{ kernel: any, tokens: { min: 1, max: 64 } }], 'tokens');
    encoder.choose(
      [
        { kernel: any, tokens: { min: 5, max: 64 } },
        { kernel: small, tokens: { min: 1, max: 4 } },
      ],
      'tokens',
    );
    expect(encoder.finish().ranges.tokens).to.deep.equal({ min: 5, max: 8 });
    expect(encoder.finish().ranges.logitRows).to.deep.equal({ min: 0, max: Infinity });
  });
});

describe('ActivationBuffers', () => {
  it('lends one buffer per label and width, for the most rows of a step', () => {
    const buffers = new ActivationBuffers(createTypescriptDevice(), limits);
    const first = buffers.get('normed', 'tokens', 16);
    expect(buffers.get('normed', 'tokens', 16)).to.equal(first);
    expect(buffers.get('normed', 'tokens', 32)).not.to.equal(first);
    expect(buffers.get('logits', 'logitRows', 10).byteLength).to.equal(160);
    expect(buffers.byteLength).to.equal(4 * 64 * 48 + 160);
  });
});
