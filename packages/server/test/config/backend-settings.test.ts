import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Preference } from '@moe-server/core';
import { expect } from 'chai';
import { parse } from '../command-line.js';

type Row = readonly [effect: string, backend: string, scope: object];

const rowsOf = (preferences: readonly Preference[]): Row[] =>
  preferences.map(({ effect, backend, scope: { kind, ...scope } }) => [effect, backend, kind === 'moe' ? scope : { kind, ...scope }]);

describe('settings of backends', () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-backends-'));
  });
  after(() => {
    rmSync(folder, { recursive: true });
  });
  const write = (content: object): string => {
    const file = join(folder, 'moe.json');
    writeFileSync(file, JSON.stringify(content));
    return file;
  };

  const flags: readonly [args: readonly string[], rows: readonly Row[]][] = [
    [['--moe-backend', 'b12x'], [['prefer', 'b12x', {}]]],
    [
      ['--moe-backend=b12x,cutlass'],
      [
        ['prefer', 'b12x', {}],
        ['prefer', 'cutlass', {}],
      ],
    ],
    [
      ['--moe-backend', 'b12x', '--moe-backend', '!triton'],
      [
        ['prefer', 'b12x', {}],
        ['forbid', 'triton', {}],
      ],
    ],
    [['--moe-backend.fp8', 'cutlass'], [['prefer', 'cutlass', { family: 'fp8' }]]],
    [['--moe-backend.fp8=cutlass'], [['prefer', 'cutlass', { family: 'fp8' }]]],
    [['--moe-backend.fp8.block128', '!cutlass'], [['forbid', 'cutlass', { scheme: 'fp8.block128' }]]],
    [['--moe-backend.bf16', 'triton'], [['prefer', 'triton', { scheme: 'bf16' }]]],
    [['--fp8-moe-backend', 'cutlass'], [['prefer', 'cutlass', { family: 'fp8' }]]],
    [['--nvfp4.w4a4-moe-backend', 'b12x'], [['prefer', 'b12x', { scheme: 'nvfp4.w4a4' }]]],
    [['--fp8-block128-linear-backend', 'triton'], [['prefer', 'triton', { kind: 'linear', scheme: 'fp8.block128' }]]],
    [['--moe-backend.draft', 'triton'], [['prefer', 'triton', { role: 'draft' }]]],
    [['--moe-backend.target', 'b12x'], [['prefer', 'b12x', { role: 'target' }]]],
    [['--moe-backend.layers', 'model.layers.4?.*=cutlass'], [['prefer', 'cutlass', { layers: 'model.layers.4?.*' }]]],
    [
      ['--moe-backend.layers', 'model.layers.0.*=cutlass', '--moe-backend.layers', '*.mlp.*=!triton'],
      [
        ['prefer', 'cutlass', { layers: 'model.layers.0.*' }],
        ['forbid', 'triton', { layers: '*.mlp.*' }],
      ],
    ],
    [
      ['--moe-backend', '{"nvfp4":"b12x","fp8":"cutlass"}'],
      [
        ['prefer', 'b12x', { family: 'nvfp4' }],
        ['prefer', 'cutlass', { family: 'fp8' }],
      ],
    ],
    [
      ['--moe-backend', '{"default":"b12x","fp8.channel":["cutlass","!triton"],"draft":"auto"}'],
      [
        ['prefer', 'b12x', {}],
        ['prefer', 'cutlass', { scheme: 'fp8.channel' }],
        ['forbid', 'triton', { scheme: 'fp8.channel' }],
        ['auto', 'auto', { role: 'draft' }],
      ],
    ],
    [['--moe-backend.layers', '{"*.0.*":"cutlass"}'], [['prefer', 'cutlass', { layers: '*.0.*' }]]],
    [['--moe-backend.draft', '{"bf16":"triton"}'], [['prefer', 'triton', { role: 'draft', scheme: 'bf16' }]]],
    [['--linear-backend', 'cutlass'], [['prefer', 'cutlass', { kind: 'linear' }]]],
    [['--linear-backend.fp8', '!triton'], [['forbid', 'triton', { kind: 'linear', family: 'fp8' }]]],
    [['--linear-backend.layers', 'lm_head=triton'], [['prefer', 'triton', { kind: 'linear', layers: 'lm_head' }]]],
    [['--linear-backend', '{"fp8":"cutlass"}'], [['prefer', 'cutlass', { kind: 'linear', family: 'fp8' }]]],
    [['--speculative-config', '{"moe_backend":"triton"}'], [['prefer', 'triton', { role: 'draft' }]]],
    [['--speculative-config', '{"linear_backend":"triton"}'], [['prefer', 'triton', { kind: 'linear', role: 'draft' }]]],
    [
      [
        '--moe-backend-policy',
        'require',
        '--moe-backend',
        'b12x',
        '--moe-backend.fp8',
        'cutlass',
        '--moe-backend',
        '!triton',
        '--linear-backend',
        'cutlass',
      ],
      [
        ['require', 'b12x', {}],
        ['forbid', 'triton', {}],
        ['prefer', 'cutlass', { kind: 'linear' }],
        ['require', 'cutlass', { family: 'fp8' }],
      ],
    ],
    [
      ['--linear-backend-policy', 'require', '--linear-backend.fp8', 'cutlass'],
      [['require', 'cutlass', { kind: 'linear', family: 'fp8' }]],
    ],
    [['--moe-backend', 'auto'], [['auto', 'auto', {}]]],
  ];
  for (const [args, rows] of flags) {
    it(`reads ${args.join(' ')}`, () => {
      const { preferences } = parse(args);
      expect(rowsOf(preferences)).to.deep.equal(rows);
      for (const { source } of preferences) expect(source.type).to.equal('flag');
    });
  }

  const variables: readonly [name: string, value: string, rows: readonly Row[]][] = [
    ['MOE_BACKEND', 'b12x', [['prefer', 'b12x', {}]]],
    [
      'MOE_BACKEND',
      'b12x,!triton',
      [
        ['prefer', 'b12x', {}],
        ['forbid', 'triton', {}],
      ],
    ],
    [
      'MOE_BACKEND',
      '{"nvfp4":"b12x","fp8":"cutlass"}',
      [
        ['prefer', 'b12x', { family: 'nvfp4' }],
        ['prefer', 'cutlass', { family: 'fp8' }],
      ],
    ],
    ['MOE_LINEAR_BACKEND', 'cutlass', [['prefer', 'cutlass', { kind: 'linear' }]]],
    ['MOE_FP8_BACKEND', 'cutlass', [['prefer', 'cutlass', { family: 'fp8' }]]],
    ['MOE_NVFP4_BACKEND', '!b12x', [['forbid', 'b12x', { family: 'nvfp4' }]]],
    ['MOE_NVFP4_W4A4_BACKEND', 'b12x', [['prefer', 'b12x', { scheme: 'nvfp4.w4a4' }]]],
    ['MOE_FP8_TENSOR_STATIC_BACKEND', 'cutlass', [['prefer', 'cutlass', { scheme: 'fp8.tensor.static' }]]],
    ['MOE_DRAFT_BACKEND', 'triton', [['prefer', 'triton', { role: 'draft' }]]],
    [
      'MOE_LAYERS_BACKEND',
      '*.0.*=cutlass,*.1.*=triton',
      [
        ['prefer', 'cutlass', { layers: '*.0.*' }],
        ['prefer', 'triton', { layers: '*.1.*' }],
      ],
    ],
    ['MOE_LINEAR_FP8_BACKEND', 'cutlass', [['prefer', 'cutlass', { kind: 'linear', family: 'fp8' }]]],
    ['MOE_SPECULATIVE_CONFIG', '{"moe_backend":"triton"}', [['prefer', 'triton', { role: 'draft' }]]],
    ['VLLM_FP8_MOE_BACKEND', 'flashinfer_cutlass', [['prefer', 'flashinfer_cutlass', { family: 'fp8' }]]],
    ['MOE_FP8_BACKEND', '', []],
  ];
  for (const [name, value, rows] of variables) {
    it(`reads ${name}=${value}`, () => {
      const { preferences } = parse([], { [name]: value });
      expect(rowsOf(preferences)).to.deep.equal(rows);
      for (const { source } of preferences)
        expect(source).to.include({ type: 'environment' }).with.property('text').that.contains(`${name}=`);
    });
  }

  const files: readonly [content: object, rows: readonly Row[]][] = [
    [{ 'moe-backend': 'b12x' }, [['prefer', 'b12x', {}]]],
    [
      { moe_backend: ['b12x', '!triton'] },
      [
        ['prefer', 'b12x', {}],
        ['forbid', 'triton', {}],
      ],
    ],
    [
      { 'moe-backend': { nvfp4: 'b12x', fp8: 'cutlass' } },
      [
        ['prefer', 'b12x', { family: 'nvfp4' }],
        ['prefer', 'cutlass', { family: 'fp8' }],
      ],
    ],
    [{ 'moe-backend.fp8': 'cutlass' }, [['prefer', 'cutlass', { family: 'fp8' }]]],
    [{ fp8_moe_backend: 'cutlass' }, [['prefer', 'cutlass', { family: 'fp8' }]]],
    [{ 'moe-backend.layers': { '*.0.*': 'cutlass' } }, [['prefer', 'cutlass', { layers: '*.0.*' }]]],
    [{ 'linear-backend': { fp8: ['cutlass'] } }, [['prefer', 'cutlass', { kind: 'linear', family: 'fp8' }]]],
    [{ speculative_config: { moe_backend: 'triton' } }, [['prefer', 'triton', { role: 'draft' }]]],
    [{ 'moe-backend': 'b12x', 'moe-backend-policy': 'require' }, [['require', 'b12x', {}]]],
  ];
  for (const [content, rows] of files) {
    it(`reads ${JSON.stringify(content)} from a file`, () => {
      const file = write(content);
      const { preferences } = parse([], {}, file);
      expect(rowsOf(preferences)).to.deep.equal(rows);
      for (const { source } of preferences) expect(source).to.include({ type: 'file' }).with.property('text').that.contains(`${file}: `);
    });
  }

  it("puts this project's variable before the one it reads for vLLM", () => {
    const { preferences } = parse([], { VLLM_FP8_MOE_BACKEND: 'triton', MOE_FP8_BACKEND: 'cutlass' });
    expect(preferences.map(({ backend }) => backend)).to.deep.equal(['cutlass', 'triton']);
  });

  it('lets the environment set numerics per scheme', () => {
    expect(parse([], { MOE_NUMERICS_NVFP4: 'wider' }).numericsPolicy.byScheme).to.deep.equal({ nvfp4: 'wider' });
  });

  const faults: readonly [args: readonly string[], environment: Record<string, string>, message: RegExp][] = [
    [['--moe-backend.layers', 'cutlass'], {}, /^--moe-backend\.layers cutlass: expected PATTERN=BACKEND such as/],
    [['--moe-backend', '{"fp8":'], {}, /^--moe-backend \{"fp8":: expected a JSON object of scopes/],
    [['--moe-backend', '{"fp8":4}'], {}, /"fp8" is 4/],
    [['--moe-backend.fp8', '{"nvfp4":"b12x"}'], {}, /^--moe-backend\.fp8 .*"nvfp4" is another scheme/],
    [[], { MOE_FP8_BACKEND: 'a b' }, /^MOE_FP8_BACKEND=a b: "a b" is no backend's name/],
    [['--speculative-config', '{"method":"mtp"}'], {}, /^--speculative-config: "method" is not supported: draft heads are planned/],
    [['--speculative-config', '[]'], {}, /^--speculative-config: expected a JSON object/],
    [['--speculative-config', '{"moe_backend":1}'], {}, /expected the name of a backend for "moe_backend", got 1/],
    [[], { MOE_BACKEND_POLICY: 'demand' }, /^MOE_BACKEND_POLICY: expected one of prefer, require/],
  ];
  for (const [args, environment, message] of faults) {
    it(`refuses ${[...args, ...Object.entries(environment).map((entry) => entry.join('='))].join(' ')}, naming the source`, () => {
      expect(() => parse(args, environment))
        .to.throw(message)
        .with.property('code', 'MOE_USAGE');
    });
  }
});
