import { expect } from 'chai';
import type { SchemeKey } from '../../src/index.js';
import { isMoeError, MatrixStack, matrixStackBytes, SCHEME, schemeKeys, swizzledScaleOffset } from '../../src/index.js';
import type { MatrixOrder } from '../../src/index.js';
import { Random, randomMatrix } from '../../src/conformance/index.js';

const orders: readonly MatrixOrder[] = (['stacked', 'interleaved'] as const).flatMap((rows) =>
  (['row-major', 'swizzled'] as const).map((blockScales) => ({ rows, blockScales })),
);

const inputAmax = 8;

describe('MatrixStack', () => {
  // Sizes that fill neither atoms nor blocks.
  for (const scheme of schemeKeys() as SchemeKey[]) {
    for (const order of orders) {
      it(`gives back ${scheme} bit for bit, ${order.rows}, ${order.blockScales}`, () => {
        const shape = { scheme, numStacks: 3, partRows: [40, 40], columns: 160, hasBias: true };
        const stack = new MatrixStack(shape, order);
        const random = new Random(11);
        const put = Array.from({ length: 6 }, (_, i) => {
          const matrix = randomMatrix(scheme, 40, 160, random.fork(i), { inputAmax });
          const bias = Float32Array.from({ length: 40 }, () => random.normal());
          return { matrix, bias };
        });
        put.forEach(({ matrix, bias }, i) => {
          stack.put('m', Math.floor(i / 2), i % 2, matrix, bias);
        });
        put.forEach(({ matrix, bias }, i) => {
          expect(stack.matrix(Math.floor(i / 2), i % 2)).to.deep.equal(matrix);
          expect(stack.bias(Math.floor(i / 2), i % 2)).to.deep.equal(bias);
        });
      });
    }

    it(`counts the bytes of ${scheme} as it takes them`, () => {
      for (const order of orders) {
        const shape = { scheme, numStacks: 3, partRows: [40, 40], columns: 160, hasBias: true };
        const { tensors } = new MatrixStack(shape, order);
        const taken = (Object.values(tensors) as (Uint8Array | Float32Array)[]).reduce((sum, { byteLength }) => sum + byteLength, 0);
        expect(matrixStackBytes(shape, order)).to.equal(taken);
      }
    });
  }

  it('takes matrices of different heights where they are not interleaved', () => {
    const shape = { scheme: 'fp8.block128', numStacks: 1, partRows: [130, 48], columns: 200, hasBias: false } as const;
    const stack = new MatrixStack(shape, { rows: 'stacked', blockScales: 'swizzled' });
    const random = new Random(3);
    const matrices = shape.partRows.map((rows, i) => randomMatrix('fp8.block128', rows, 200, random.fork(i), { inputAmax }));
    matrices.forEach((matrix, part) => {
      stack.put('m', 0, part, matrix, undefined);
    });
    matrices.forEach((matrix, part) => {
      expect(stack.matrix(0, part)).to.deep.equal(matrix);
    });
    expect(stack.tensors.scales).to.have.length(2 * 2 + 2);
    expect(() => matrixStackBytes(shape, { rows: 'interleaved', blockScales: 'swizzled' })).to.throw(RangeError, '130 and 48');
  });

  it('puts row i of gate at row 2i and of up at 2i + 1, with their scales in the stack’s atoms', () => {
    const stack = new MatrixStack(
      { scheme: 'nvfp4.w4a4', numStacks: 1, partRows: [128, 128], columns: 64, hasBias: false },
      { rows: 'interleaved', blockScales: 'swizzled' },
    );
    const random = new Random(5);
    const [gate, up] = [0, 1].map((i) => randomMatrix('nvfp4.w4a4', 128, 64, random.fork(i), { inputAmax }));
    stack.put('gate', 0, 0, gate!, undefined);
    stack.put('up', 0, 1, up!, undefined);
    const { codes, blockScales } = stack.tensors;
    expect(codes.subarray(2 * 77 * 32, (2 * 77 + 1) * 32)).to.deep.equal(gate!.codes.subarray(77 * 32, 78 * 32));
    expect(codes.subarray((2 * 77 + 1) * 32, (2 * 77 + 2) * 32)).to.deep.equal(up!.codes.subarray(77 * 32, 78 * 32));
    expect(blockScales[swizzledScaleOffset(2 * 77 + 1, 2, 4)]).to.equal(up!.blockScales[77 * 4 + 2]);
  });

  it('keeps global scales as factors for kernels and as the checkpoint has them for the way back', () => {
    const stack = new MatrixStack(
      { scheme: 'nvfp4.w4a4', numStacks: 1, partRows: [16], columns: 64, hasBias: false },
      { rows: 'stacked', blockScales: 'row-major' },
    );
    const matrix = {
      ...randomMatrix('nvfp4.w4a4', 16, 64, new Random(1), { inputAmax }),
      globalScale: 2000,
      globalScaleIs: 'divisor' as const,
      inputScale: undefined,
    };
    stack.put('m', 0, 0, matrix, undefined);
    expect(stack.tensors.scales[0]).to.equal(Math.fround(1 / 2000));
    expect(stack.tensors.inputScales[0]).to.be.NaN;
    expect(stack.matrix(0, 0)).to.deep.equal(matrix);
  });

  it('refuses what contradicts its shape, naming the matrix', () => {
    const stack = new MatrixStack(
      { scheme: 'nvfp4.w4a4', numStacks: 1, partRows: [16], columns: 64, hasBias: false },
      { rows: 'stacked', blockScales: 'row-major' },
    );
    const random = new Random(1);
    const good = randomMatrix('nvfp4.w4a4', 16, 64, random, { inputAmax });
    const faulty = [
      { matrix: randomMatrix('nvfp4.w4a4', 32, 64, random, { inputAmax }), bias: undefined, says: 'shape [16, 64], got [32, 64]' },
      { matrix: randomMatrix('bf16', 16, 64, random, { inputAmax }), bias: undefined, says: 'scheme nvfp4.w4a4, got bf16' },
      { matrix: good, bias: new Float32Array(16), says: 'bias none, got of 16 values' },
      { matrix: { ...good, codes: new Uint8Array(3) }, bias: undefined, says: 'number of code bytes 512, got 3' },
      { matrix: { ...good, blockScales: new Uint8Array(3) }, bias: undefined, says: 'number of block scales 64, got 3' },
    ];
    for (const { matrix, bias, says } of faulty) {
      expect(() => {
        stack.put('model.layers.0.x', 0, 0, matrix, bias);
      }).to.throw(`model.layers.0.x: expected ${says}.`);
    }
    expect(() => stack.matrix(0, 0)).to.throw(RangeError, 'never put');
  });

  it('refuses a scheme whose parts only a plugin knows', () => {
    const scheme = 'mine.w3a16' as SchemeKey;
    try {
      new MatrixStack({ scheme, numStacks: 1, partRows: [1], columns: 1, hasBias: false }, orders[0]!);
      expect.fail('it was made');
    } catch (thrown) {
      expect(isMoeError(thrown) && thrown.code).to.equal('MOE_UNSUPPORTED_QUANTIZATION');
    }
    expect(randomMatrix('bf16', 1, 1, new Random(1), { inputAmax })[SCHEME]).to.equal('bf16');
  });
});
