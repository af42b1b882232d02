import { expect } from 'chai';
import { readCpuOptions } from '../src/cpu-options.js';

describe('options of the CPU bench', () => {
  it('measure what the table of the issue lists, if nothing is said', () => {
    const { prompts, contexts, parallel, numerics, peers } = readCpuOptions([]) ?? {};
    expect({ prompts, contexts, parallel, numerics, peers }).to.deep.equal({
      prompts: [512, 2048],
      contexts: [128, 2048],
      parallel: [4, 8],
      numerics: ['auto'],
      peers: undefined,
    });
  });

  it("take several files for the peer, called by their names or by what stands before '='", () => {
    const args = ['--peer', 'dir', '--peer-gguf', '/a/S.gguf', '--peer-gguf', 'fast=/a/S-q4_0.gguf'];
    expect(readCpuOptions(args)?.peers).to.deep.equal({
      folder: 'dir',
      files: [
        { label: 'S', file: '/a/S.gguf' },
        { label: 'fast', file: '/a/S-q4_0.gguf' },
      ],
    });
  });

  it('leave the help to others', () => {
    expect(readCpuOptions(['--help'])).to.equal(undefined);
  });

  for (const [what, args, message] of [
    ['a flag that is none', ['--shap', 'S'], /--shap/],
    ['an unknown shape', ['--shape', 'L'], /pocket, S, M/],
    ['an unknown class of numerics', ['--numerics', 'auto,best'], /"best"/],
    ['a peer without a file', ['--peer', 'dir'], /go together/],
    ['two files of one name', ['--peer', 'd', '--peer-gguf', 'a/S.gguf', '--peer-gguf', 'b/S.gguf'], /LABEL=FILE/],
    ['no number', ['--runs', 'many'], /--runs .* "many"/],
  ] as const) {
    it(`refuse ${what}`, () => {
      expect(() => readCpuOptions([...args])).to.throw(message);
    });
  }
});
