import { expect } from 'chai';
import type { DeviceSupport } from '../../src/backend.js';
import type { CpuDeviceInfo, DeviceInfo } from '../../src/device-info.js';
import {
  deviceRefusal,
  formatRefusal,
  listOf,
  rangeRefusal,
  routingRefusal,
  schemeRefusal,
  sizeRefusal,
  tokensRefusal,
} from '../../src/oracle/dimensions.js';
import { formatBytes } from '../../src/oracle/memory.js';
import { routing } from './declared-backends.js';

const avx2: CpuDeviceInfo = {
  type: 'cpu',
  name: 'some CPU',
  architecture: 'x64',
  features: ['avx2', 'fma'],
  numThreads: 2,
  memoryBytes: undefined,
};
const h100: DeviceInfo = { type: 'cuda', name: 'H100', sm: 90, memoryBytes: undefined };

describe('deviceRefusal', () => {
  const cases: [device: DeviceInfo, support: DeviceSupport, message: string | undefined][] = [
    [avx2, { type: 'cpu' }, undefined],
    [avx2, { type: 'cpu', features: ['avx2'], architectures: ['x64'] }, undefined],
    [
      avx2,
      { type: 'cpu', features: ['avx2', 'avx512f', 'avx512bw'] },
      'it needs avx512f and avx512bw, which this processor or operating system does not offer.',
    ],
    [avx2, { type: 'cpu', architectures: ['arm64'] }, 'it needs a processor of type arm64; this one is x64.'],
    [h100, { type: 'cpu' }, 'it needs a CPU; the device is H100 (SM 9.0).'],
    [h100, { type: 'cuda', sm: { min: 80 } }, undefined],
    [h100, { type: 'cuda', sm: { min: 100 } }, 'it needs SM 10.0 or newer; the device is H100 (SM 9.0).'],
    [h100, { type: 'cuda', sm: { min: 100, max: 103 } }, 'it needs SM 10.0 to SM 10.3; the device is H100 (SM 9.0).'],
    [h100, { type: 'cuda', sm: { max: 89 } }, 'it needs SM 8.9 or older; the device is H100 (SM 9.0).'],
    [avx2, { type: 'cuda', sm: {} }, 'it needs a CUDA device of any SM; the device is some CPU (CPU, x64).'],
  ];
  for (const [device, support, message] of cases) {
    it(`${message === undefined ? 'covers' : 'refuses'} ${device.name} under ${JSON.stringify(support)}`, () => {
      expect(deviceRefusal(device, support)?.message).to.equal(message);
    });
  }
});

describe('schemeRefusal', () => {
  it('refuses a scheme that nobody defined, also where the rule lists it', () => {
    expect(schemeRefusal(['mine.w3'], ['mine.w3'])?.message).to.equal(
      'the quantization scheme mine.w3 is not defined; install the plugin that defines it.',
    );
  });

  it('names only the schemes that are missing', () => {
    expect(schemeRefusal(['bf16', 'fp8.channel'], ['bf16'])?.message).to.equal('it runs bf16; these weights are fp8.channel.');
  });
});

describe('sizeRefusal', () => {
  it('names the next size that would do where tensor parallel is not to blame', () => {
    expect(sizeRefusal('hiddenSize', 'hidden_size', 704, { multipleOf: 128 }, 1)?.message).to.equal(
      'it would serve it if hidden_size were a multiple of 128: it is 704; 768 would do.',
    );
  });

  it('names both wishes at once', () => {
    expect(sizeRefusal('hiddenSize', 'hidden_size', 100, { multipleOf: 64, min: 256 }, 1)?.message).to.contain(
      'were a multiple of 64 and at least 256: it is 100',
    );
  });

  it('names the tensor parallel size under which the whole would fit', () => {
    expect(sizeRefusal('moeIntermediateSize', 'moe_intermediate_size', 160, { multipleOf: 64 }, 8)?.message).to.contain(
      'it is 160 after tensor parallel 8; pad to 192, or use tensor parallel 4',
    );
  });
});

describe('rangeRefusal', () => {
  for (const value of [0, -1, 1.5, NaN, Infinity, undefined, '8']) {
    it(`counts ${String(value)}${typeof value === 'string' ? ' as text' : ''} as not known`, () => {
      expect(rangeRefusal('topK', 'top_k', value as number, {})?.message).to.contain('top_k is not known');
    });
  }

  it('takes both ends', () => {
    expect([2, 8].map((value) => rangeRefusal('topK', 'top_k', value, { min: 2, max: 8 }))).to.deep.equal([undefined, undefined]);
    expect(rangeRefusal('topK', 'top_k', 1, { min: 2 })?.message).to.equal('it takes at least 2 top_k; the layer has 1.');
  });
});

describe('routingRefusal', () => {
  it('names what the nearest method of the kernel has otherwise', () => {
    const kernel = [
      { ...routing, score: 'sigmoid' as const, order: 'topk-first' as const },
      { ...routing, renormalize: false },
    ];
    expect(routingRefusal({ ...routing, scalingFactor: 2.5 }, kernel)?.message).to.equal(
      'it does the routing itself, and would serve it if renormalize were false (it is true) and scalingFactor were 1 (it is 2.5).',
    );
  });

  it('asks nothing of kernels that do not route', () => {
    expect(routingRefusal({ ...routing, score: 'sigmoid' }, undefined)).to.equal(undefined);
  });

  it('compares every parameter', () => {
    expect(routingRefusal(routing, [{ ...routing }])).to.equal(undefined);
    for (const change of [
      { renormalize: false },
      { scalingFactor: 2.5 },
      { numGroups: 8 },
      { topkGroups: 4 },
      { hasCorrectionBias: true },
      { hasRouterBias: true },
      { order: 'topk-first' as const },
    ]) {
      expect(routingRefusal({ ...routing, ...change }, [routing])?.dimension, JSON.stringify(change)).to.equal('routing');
    }
  });
});

describe('words of messages', () => {
  it('joins lists as people do', () => {
    expect([listOf([]), listOf(['a']), listOf(['a', 'b']), listOf(['a', 'b', 'c'], 'or')]).to.deep.equal([
      'nothing',
      'a',
      'a and b',
      'a, b or c',
    ]);
  });

  it('writes bytes with their unit', () => {
    expect([0, 1023, 1536, 5 * 2 ** 30, 3 * 2 ** 50].map(formatBytes)).to.deep.equal(['0 B', '1023 B', '1.5 KiB', '5.0 GiB', '3072.0 TiB']);
  });
});

describe('formatRefusal', () => {
  it('refuses a cut through a block of one scale, naming the tensor parallel size that would not', () => {
    const cut = (size: number, tpSize: number) =>
      formatRefusal('moeIntermediateSize', 'moe_intermediate_size', ['rows'], size, 'fp8.block128', tpSize)?.message;
    expect(cut(192, 8)).to.equal(
      'fp8.block128 has one scale per 128 rows, and moe_intermediate_size is 192 after tensor parallel 8; pad to 256, or use tensor parallel 4.',
    );
    expect(cut(384, 4)).to.equal(undefined);
    // The last block of a whole matrix may be smaller.
    expect(cut(192, 1)).to.equal(undefined);
  });

  it('refuses columns that are no whole groups, cut or not, and leaves rows of such formats alone', () => {
    const columns = (size: number, tpSize: number) => formatRefusal('inFeatures', 'in_features', ['columns'], size, 'nvfp4.w4a4', tpSize);
    expect(columns(24, 4)?.message).to.equal(
      'nvfp4.w4a4 has one scale per 16 columns, and in_features is 24 after tensor parallel 4; pad to 32, or use tensor parallel 2.',
    );
    expect(columns(32, 4)).to.equal(undefined);
    expect(formatRefusal('outFeatures', 'out_features', ['rows'], 24, 'nvfp4.w4a4', 4)).to.equal(undefined);
  });
});

describe('tokensRefusal', () => {
  it('names the size of calls from which the rule would serve, and does not take an unknown one for covered', () => {
    expect(tokensRefusal(64, { min: 128 })?.message).to.equal(
      'it takes calls of at least 128 tokens, and at most 64 come in one call; --max-num-batched-tokens 128 would do.',
    );
    expect(tokensRefusal(NaN, {})?.message).to.contain('the size of a call is not known (NaN)');
    expect(tokensRefusal(64, { min: 64 })).to.equal(undefined);
  });
});
