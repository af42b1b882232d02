import { expect } from 'chai';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import type { ExpertWeights, LinearBackend, LinearWeights, MoeBackend, PackContext } from '../src/backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../src/layer-spec.js';
import type { ErasedMoeBackend } from '../src/oracle/erased-backend.js';

/** What the compiler must refuse, held to by the build itself: an error that does not come is one. */
export function refusedByTheBuild(
  fp4: MoeBackend<'nvfp4.w4a4'>,
  fp4Linear: LinearBackend<'nvfp4.w4a4'>,
  erased: ErasedMoeBackend,
  group: ExpertGroupSpec,
  linear: LinearSpec,
  fp8: ExpertWeights<'fp8.block128'>,
  fp8Linear: LinearWeights<'fp8.block128'>,
  context: PackContext,
): unknown {
  const [rule] = fp4.rules;
  const [linearRule] = fp4Linear.rules;
  if (rule === undefined || linearRule === undefined) return undefined;
  // @ts-expect-error FP8 weights for an FP4-only backend
  void fp4.pack(group, rule, fp8, context);
  // @ts-expect-error the same for linears
  void fp4Linear.pack(linear, linearRule, fp8Linear, context);
  // @ts-expect-error a list of backends of any scheme
  const backends: MoeBackend[] = [fp4];
  // @ts-expect-error the registry's view of a backend cannot be given weights
  const pack: unknown = erased.pack;
  return [backends, pack];
}

/** The declarations that plugin authors compile against, and around them what the snippets share. */
const prelude = `
import type { ExpertMatrices, ExpertSupportRule, ExpertWeights, Footprint, Kernel, LinearBackend, LinearSupportRule, LinearWeights, MoeBackend, PackContext, PackedWeights } from '../src/backend.js';
import type { ExpertGroupSpec, LinearSpec } from '../src/layer-spec.js';
import type { ErasedMoeBackend } from '../src/oracle/erased-backend.js';
import type { PluginHost } from '../src/plugin-host.js';
import type { Fp8BlockWeights, Nvfp4Weights, SchemeKey } from '../src/quant/quant-scheme.js';

type Fp4 = 'nvfp4.w4a4';
type Fp8 = 'fp8.block128';
declare const fp4: MoeBackend<Fp4>;
declare const fp8: MoeBackend<Fp8>;
declare const fp4Linear: LinearBackend<Fp4>;
declare const fp4Rule: ExpertSupportRule<Fp4>;
declare const fp8Rule: ExpertSupportRule<Fp8>;
declare const fp4Weights: ExpertWeights<Fp4>;
declare const fp8Weights: ExpertWeights<Fp8>;
declare const group: ExpertGroupSpec;
declare const linear: LinearSpec;
declare const context: PackContext;
declare const host: PluginHost;
declare const packed: Promise<PackedWeights>;
declare const matrices: ExpertMatrices<Fp4>;
declare const footprint: Footprint;
declare const kernel: Promise<Kernel>;
`;

/** Members of an FP4 backend beside rules and pack. */
const others = `kind = 'moe' as const; name = 'b12x'; priority = () => 1; footprint = () => footprint; unpack = () => matrices; createKernel = () => kernel;`;

const compiles: [what: string, code: string][] = [
  ['an FP4 backend with FP4 weights', `void fp4.pack(group, fp4Rule, fp4Weights, context);`],
  ['registering backends of any scheme', `host.addMoeBackend(fp4); host.addMoeBackend(fp8); host.addLinearBackend(fp4Linear);`],
  [
    'an FP4 backend as a class',
    `class B implements MoeBackend<Fp4> { ${others} rules = [fp4Rule]; pack = (_g: ExpertGroupSpec, _r: ExpertSupportRule<Fp4>, _w: ExpertWeights<Fp4>) => packed; }
     host.addMoeBackend(new B());`,
  ],
  [
    'a backend of two schemes where either weights are',
    `declare const both: MoeBackend<Fp4 | Fp8>; declare const rule: ExpertSupportRule<Fp4 | Fp8>; void both.pack(group, rule, fp8Weights, context); void both.pack(group, rule, fp4Weights, context);`,
  ],
];

const refused: [what: string, code: string, diagnostic: number][] = [
  ['an FP4-only backend called with FP8 weights', `void fp4.pack(group, fp4Rule, fp8Weights, context);`, 2345],
  [
    'weights of the same format but another brand',
    `declare const a16: ExpertWeights<'nvfp4.w4a16'>; void fp4.pack(group, fp4Rule, a16, context);`,
    2345,
  ],
  ['weights of any scheme', `declare const some: ExpertWeights; void fp4.pack(group, fp4Rule, some, context);`, 2345],
  ['an FP8 rule at the call', `void fp4.pack(group, fp8Rule, fp4Weights, context);`, 2345],
  ['an FP4-only backend that declares an FP8 rule', `const b: MoeBackend<Fp4> = { ...fp4, rules: [fp8Rule] };`, 2322],
  [
    'a class that declares an FP8 rule',
    `class B implements MoeBackend<Fp4> { ${others} rules = [fp8Rule]; pack = (_g: ExpertGroupSpec, _r: ExpertSupportRule<Fp4>, _w: ExpertWeights<Fp4>) => packed; }`,
    2416,
  ],
  ['a scheme that nobody defined', `declare const r: ExpertSupportRule<'fp3.odd'>;`, 2344],
  ['a list of backends of any scheme', `const list: MoeBackend<SchemeKey>[] = [fp4];`, 2322],
  ['a list that takes the other list whole', `declare const list: MoeBackend<Fp4>[]; const any: readonly MoeBackend[] = list;`, 2322],
  ['pushing onto a list of any scheme', `declare const list: MoeBackend[]; list.push(fp4);`, 2345],
  ['a map of backends of any scheme', `const map = new Map<string, MoeBackend>(); map.set('b12x', fp4);`, 2345],
  ['a generic function that widens', `function widen<S extends SchemeKey>(backend: MoeBackend<S>): MoeBackend { return backend; }`, 2322],
  [
    'a walk over a union of backends',
    `declare const list: (MoeBackend<Fp4> | MoeBackend<Fp8>)[]; for (const b of list) void b.pack(group, b.rules[0] as never, fp8Weights, context);`,
    2345,
  ],
  [
    'the detour through methods, which TypeScript compares bivariantly',
    `class B { ${others} rules = [fp4Rule]; pack(_g: ExpertGroupSpec, _r: ExpertSupportRule<Fp4>, _w: ExpertWeights<Fp4>): Promise<PackedWeights> { return packed; } }
     const any: MoeBackend = new B();`,
    2322,
  ],
  [
    'an FP8 backend whose pack method takes FP4 weights',
    `class B implements MoeBackend<Fp8> { ${others.replace('unpack = () => matrices;', 'declare unpack: MoeBackend<Fp8>["unpack"];')} rules = [fp8Rule]; pack(_g: ExpertGroupSpec, _r: ExpertSupportRule<Fp8>, _w: ExpertWeights<Fp4>): Promise<PackedWeights> { return packed; } }`,
    2416,
  ],
  [
    'registering rules of one scheme with a pack of another',
    `class B { ${others} rules = [fp8Rule]; pack = (_g: ExpertGroupSpec, _r: ExpertSupportRule<Fp4>, _w: ExpertWeights<Fp4>) => packed; }
     host.addMoeBackend(new B());`,
    2345,
  ],
  [
    'the registry handing out weights',
    `declare const erased: ErasedMoeBackend; void erased.pack(group, fp4Rule, fp8Weights, context);`,
    2339,
  ],
  [
    'the registry handing out the backend',
    `declare const erased: ErasedMoeBackend; void erased.implementation.pack(group, fp4Rule, fp8Weights, context);`,
    18046,
  ],
  ['FP8 matrices as FP4 ones', `declare const fp8Matrix: Fp8BlockWeights; const m: Nvfp4Weights = fp8Matrix;`, 2739],
  [
    'an FP4-only linear called with FP8 weights',
    `declare const w: LinearWeights<Fp8>; declare const r: LinearSupportRule<Fp4>; void fp4Linear.pack(linear, r, w, context);`,
    2345,
  ],
  ['a list of linear backends of any scheme', `const list: LinearBackend[] = [fp4Linear];`, 2322],
];

describe('types of the contract', function () {
  // One program over all snippets: the compiler needs its seconds once.
  this.timeout(60_000);
  const folder = dirname(fileURLToPath(import.meta.url));
  const fileOf = (index: number) => join(folder, `types-snippet-${index}.ts`);
  const snippets = [...compiles.map(([, code]) => code), ...refused.map(([, code]) => code)];
  const codes = new Map<string, readonly ts.Diagnostic[]>();

  before(() => {
    const options: ts.CompilerOptions = {
      target: ts.ScriptTarget.ES2023,
      lib: ['lib.es2023.d.ts'],
      module: ts.ModuleKind.NodeNext,
      moduleResolution: ts.ModuleResolutionKind.NodeNext,
      types: ['node'],
      strict: true,
      noUncheckedIndexedAccess: true,
      skipLibCheck: true,
      noEmit: true,
    };
    const sources = new Map(snippets.map((code, index) => [fileOf(index), `${prelude}\n${code}\nexport {};\n`]));
    const host = ts.createCompilerHost(options);
    const base = { ...host };
    host.fileExists = (name) => sources.has(name) || base.fileExists(name);
    host.readFile = (name) => sources.get(name) ?? base.readFile(name);
    host.getSourceFile = (name, version, ...rest) => {
      const source = sources.get(name);
      return source === undefined ? base.getSourceFile(name, version, ...rest) : ts.createSourceFile(name, source, version);
    };
    const program = ts.createProgram([...sources.keys()], options, host);
    for (const name of sources.keys()) {
      const file = program.getSourceFile(name);
      codes.set(name, [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]);
    }
  });

  const diagnosticsOf = (index: number) =>
    (codes.get(fileOf(index)) ?? []).map(({ code, messageText }) => ({ code, text: ts.flattenDiagnosticMessageText(messageText, ' ') }));

  for (const [index, [what]] of compiles.entries()) {
    it(`take ${what}`, () => {
      expect(diagnosticsOf(index)).to.deep.equal([]);
    });
  }
  for (const [index, [what, , diagnostic]] of refused.entries()) {
    it(`refuse ${what}`, () => {
      const found = diagnosticsOf(compiles.length + index);
      expect(
        found.map(({ code }) => code),
        JSON.stringify(found),
      ).to.deep.equal([diagnostic]);
    });
  }
});
