import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import { addonExports, cpuAddon } from '../src/addon.js';

const silu = { type: 'silu' } as const;

function expertWeights(): object {
  return cpuAddon().createExpertWeights({ format: 'nvfp4', hiddenSize: 64, moeIntermediateSize: 32, numExperts: 2, hasBias: false });
}

describe('cpuAddon', () => {
  const addon = cpuAddon();

  it('exports exactly what its type says', () => {
    expect(Object.keys(addon).sort()).to.deep.equal([...addonExports].sort());
  });

  it('has a portable path on every processor', () => {
    expect(addon.instructionSets()).to.include('portable');
  });

  it('names what an argument must be', () => {
    const options = { format: 'int3', inFeatures: 64, outFeatures: Int32Array.of(16), hasBias: false };
    expect(() => addon.createLinearWeights(options as never)).to.throw(
      TypeError,
      'format must be one of nvfp4, mxfp4, fp8, fp8-block128, bf16, f16, not "int3"',
    );
    expect(() => addon.createLinearWeights({ ...options, format: 'bf16', inFeatures: 0 } as never)).to.throw(
      TypeError,
      'inFeatures must be a whole number from 1',
    );
    expect(() => addon.packMatrix(expertWeights(), 6, { codes: new Uint8Array(0), factor: 1 })).to.throw(
      TypeError,
      'matrix must be a whole number from 0 to 5',
    );
    expect(() => addon.packMatrix(expertWeights(), 0, { codes: new Uint8Array(3), factor: 1 })).to.throw(
      TypeError,
      'codes must have at least 1024 elements, it has 3',
    );
  });

  it('shows the memory of packed weights, so that a copy of it is packed too, until it is concealed', async () => {
    const options = { format: 'fp8', inFeatures: 32, outFeatures: Int32Array.of(16, 5), hasBias: true } as const;
    const source = { codes: new Uint8Array(5 * 32).map((_, i) => i % 100), factor: 0.5, bias: new Float32Array(5).fill(2) };
    const [packed, copy] = [addon.createLinearWeights(options), addon.createLinearWeights(options)];
    await addon.packMatrix(packed, 1, source);
    const [from, to] = [addon.exposeWeights(packed), addon.exposeWeights(copy)];
    expect(from.reduce((bytes, { length }) => bytes + length, 0)).to.equal(addon.weightsBytes(packed));
    to.forEach((part, i) => {
      part.set(from[i]!);
    });
    expect(addon.unpackMatrix(copy, 1)).to.deep.equal(addon.unpackMatrix(packed, 1));
    // What is shown lives on after the weights were disposed.
    addon.disposeWeights(packed);
    expect(from[0]?.some((byte) => byte !== 0)).to.equal(true);
    addon.concealWeights(from);
    addon.concealWeights(to);
    expect([...from, ...to].map(({ length }) => length)).to.deep.equal([0, 0, 0, 0]);
    expect(addon.unpackMatrix(copy, 1).codes).to.deep.equal(source.codes);
  });

  it('takes no object for weights or a kernel that is not one', () => {
    expect(() => addon.weightsBytes({})).to.throw(TypeError, 'expected packed weights');
    expect(() => {
      addon.disposeKernel(expertWeights());
    }).to.throw(TypeError, 'expected a native kernel');
  });

  it('refuses pairs of weights and inputs that no kernel multiplies', () => {
    const options = {
      name: 'test',
      isa: 'portable',
      input: 'fp8-static',
      inputScales: new Float32Array(6),
      topK: 1,
      activation: silu,
    } as const;
    expect(() => addon.createExpertsKernel(expertWeights(), options)).to.throw(
      TypeError,
      'no kernel multiplies fp8-static inputs and nvfp4 weights',
    );
  });

  it('keeps weights as long as a kernel needs them, and refuses what was disposed', () => {
    const weights = expertWeights();
    const kernel = addon.createExpertsKernel(weights, {
      name: 'test',
      isa: 'portable',
      input: 'float',
      inputScales: new Float32Array(0),
      topK: 1,
      activation: silu,
    });
    addon.disposeWeights(weights);
    expect(() => addon.weightsBytes(weights)).to.throw(TypeError, 'were disposed');
    const output = new Float32Array(64).fill(NaN);
    const args = {
      numTokens: 1,
      topK: 1,
      hiddenSize: 64,
      hiddenStates: new Float32Array(64),
      topkSlots: Int32Array.of(1),
      topkWeights: Float32Array.of(1),
      output,
      accumulate: false,
    };
    addon.runExperts(kernel, args, 2);
    expect([...output]).to.deep.equal(new Array(64).fill(0));
    addon.disposeKernel(kernel);
    addon.disposeKernel(kernel);
    expect(() => {
      addon.runExperts(kernel, args, 2);
    }).to.throw(TypeError, 'the kernel was disposed');
  });

  it('refuses calls that contradict the kernel, naming both', () => {
    const kernel = addon.createExpertsKernel(expertWeights(), {
      name: 'cpu/test',
      isa: 'portable',
      input: 'float',
      inputScales: new Float32Array(0),
      topK: 1,
      activation: silu,
    });
    const call = (topK: number, slot: number) => () => {
      const values = {
        hiddenStates: new Float32Array(64),
        output: new Float32Array(64),
        topkWeights: new Float32Array(topK),
        topkSlots: new Int32Array(topK).fill(slot),
      };
      addon.runExperts(kernel, { numTokens: 1, topK, hiddenSize: 64, accumulate: false, ...values }, 1);
    };
    expect(call(2, 0)).to.throw('cpu/test: built for hidden size 64 and up to 1 experts per token, called with 64 and 2');
    expect(call(1, 2)).to.throw('cpu/test: token 0 chose slot 2, the group has 2');
    addon.disposeKernel(kernel);
  });

  it('serves a call without tokens', () => {
    const kernel = addon.createExpertsKernel(expertWeights(), {
      name: 'test',
      isa: 'portable',
      input: 'float',
      inputScales: new Float32Array(0),
      topK: 1,
      activation: silu,
    });
    const none = new Float32Array(0);
    addon.runExperts(
      kernel,
      {
        numTokens: 0,
        topK: 1,
        hiddenSize: 64,
        hiddenStates: none,
        topkSlots: new Int32Array(0),
        topkWeights: none,
        output: none,
        accumulate: false,
      },
      2,
    );
    addon.disposeKernel(kernel);
  });

  it('lets the plugin load where it is missing, and says what to do', () => {
    const index = new URL('../src/index.js', import.meta.url).href;
    const script = `const { default: plugin, CpuMoeBackend } = await import(${JSON.stringify(index)}); console.log(plugin.name + ': ' + new CpuMoeBackend().missing());`;
    const environment = { ...process.env, MOE_BACKEND_CPU_ADDON: fileURLToPath(new URL('missing.node', import.meta.url)) };
    const printed = execFileSync(process.execPath, ['--input-type=module', '-e', script], { env: environment, encoding: 'utf8' });
    expect(printed).to.match(/^cpu: .*@moe-server\/backend-cpu.*missing\.node/su);
  });
});
