import { MoeError, messageOf } from '../errors.js';
import { schemeInfo, schemeKeys } from '../quant/quant-scheme.js';

/** `<owner>/<name>@<version>`, the version a positive integer. */
const layoutId = /^[a-z0-9][a-z0-9_-]*\/[a-z0-9][a-z0-9._-]*@[1-9][0-9]*$/;
/** Names that flags can carry: no `!`, `=`, comma or space. */
const backendName = /^[a-z0-9][a-z0-9_-]*$/;
const ruleId = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;

const commonFields = [
  'id',
  'schemes',
  'device',
  'tokens',
  'arithmetic',
  'layout',
  'parallel',
  'bias',
  'batchInvariant',
  'graphCapture',
  'onlyWhenNamed',
  'sizes',
];
const ruleFields = {
  moe: new Set([...commonFields, 'activations', 'numExperts', 'topK', 'mixedProjections', 'routing']),
  linear: new Set(commonFields),
};
const sizeFields = { moe: ['hiddenSize', 'moeIntermediateSize'], linear: ['inFeatures', 'outFeatures'] } as const;
const backendFunctions = ['priority', 'footprint', 'pack', 'unpack', 'createKernel'];
const optionalFunctions = ['refuse', 'missing'];

type Kind = 'moe' | 'linear';

/**
 * Checks everything of a backend that the oracle will rely on, whatever the compiler was told about it. A rule with a field the core does not
 * know is refused too: it would restrict something that nobody evaluates.
 *
 * @throws {MoeError} MOE_PLUGIN_RULE; `details.path` is the faulty field, `rules[2].sizes.hiddenSize.multipleOf`.
 */
export function validateBackend(candidate: unknown, kind: Kind, plugin: string): void {
  const name = isRecord(candidate) && typeof candidate.name === 'string' ? candidate.name : '(no name)';
  new BackendValidation(plugin, name, kind).backend(candidate);
}

class BackendValidation {
  constructor(
    private readonly plugin: string,
    private readonly name: string,
    private readonly kind: Kind,
  ) {}

  backend(candidate: unknown): void {
    const backend = this.record(candidate, '');
    if (backend.kind !== this.kind) this.fail('kind', `'${this.kind}'`, backend.kind);
    if (typeof backend.name !== 'string' || !backendName.test(backend.name) || backend.name === 'auto') {
      this.fail('name', 'a name of lower-case letters, digits, "-" and "_", other than "auto"', backend.name);
    }
    for (const key of backendFunctions) if (typeof backend[key] !== 'function') this.fail(key, 'a function', backend[key]);
    for (const key of optionalFunctions) {
      if (backend[key] !== undefined && typeof backend[key] !== 'function') this.fail(key, 'a function, or left out', backend[key]);
    }
    if (backend.storage !== undefined) {
      const storage = this.record(backend.storage, 'storage');
      for (const key of ['save', 'restore'])
        if (typeof storage[key] !== 'function') this.fail(`storage.${key}`, 'a function', storage[key]);
    }
    const ids = new Map<unknown, number>();
    this.list(backend.rules, 'rules', 'at least one rule').forEach((value, index) => {
      const path = `rules[${index}]`;
      const rule = this.rule(value, path);
      const earlier = ids.get(rule.id);
      if (earlier !== undefined) this.fail(`${path}.id`, `an id of its own (rules[${earlier}] has this one)`, rule.id);
      ids.set(rule.id, index);
    });
    try {
      structuredClone(backend.rules);
    } catch (error) {
      throw this.error('rules', `must be plain data (${messageOf(error)})`, undefined, undefined);
    }
  }

  private rule(value: unknown, path: string): Record<string, unknown> {
    const rule = this.record(value, path);
    for (const key of Object.keys(rule)) {
      if (!ruleFields[this.kind].has(key))
        this.fail(`${path}.${key}`, `no field of that name (known: ${[...ruleFields[this.kind]].join(', ')})`, rule[key]);
    }
    if (typeof rule.id !== 'string' || !ruleId.test(rule.id)) this.fail(`${path}.id`, 'letters, digits, ".", "-" and "_"', rule.id);
    this.list(rule.schemes, `${path}.schemes`, 'at least one quantization scheme').forEach((scheme, index) => {
      if (typeof scheme !== 'string' || schemeInfo(scheme) === undefined) {
        this.fail(`${path}.schemes[${index}]`, `a defined scheme (${schemeKeys().join(', ')}); defineScheme() adds one`, scheme);
      }
    });
    this.device(rule.device, `${path}.device`);
    this.range(rule.tokens, `${path}.tokens`, 1);
    this.arithmetic(rule.arithmetic, `${path}.arithmetic`);
    if (typeof rule.layout !== 'string' || !layoutId.test(rule.layout))
      this.fail(`${path}.layout`, '<owner>/<name>@<version>', rule.layout);
    if (rule.parallel !== undefined) {
      for (const [index, value] of this.list(rule.parallel, `${path}.parallel`).entries())
        this.oneOf(value, `${path}.parallel[${index}]`, ['tp', 'ep']);
    }
    for (const key of ['bias', 'batchInvariant', 'graphCapture', 'mixedProjections']) {
      if (rule[key] !== undefined && typeof rule[key] !== 'boolean') this.fail(`${path}.${key}`, 'true, false, or left out', rule[key]);
    }
    if (rule.onlyWhenNamed !== undefined && (typeof rule.onlyWhenNamed !== 'string' || rule.onlyWhenNamed.trim() === '')) {
      this.fail(`${path}.onlyWhenNamed`, 'a sentence that says why', rule.onlyWhenNamed);
    }
    const sizes = this.record(rule.sizes, `${path}.sizes`);
    for (const key of Object.keys(sizes)) {
      if (!sizeFields[this.kind].some((known) => known === key))
        this.fail(`${path}.sizes.${key}`, `no field of that name (known: ${sizeFields[this.kind].join(', ')})`, sizes[key]);
    }
    for (const key of sizeFields[this.kind]) this.multiple(sizes[key], `${path}.sizes.${key}`);
    if (this.kind === 'moe') this.expertFields(rule, path);
    return rule;
  }

  private expertFields(rule: Record<string, unknown>, path: string): void {
    this.list(rule.activations, `${path}.activations`, 'at least one activation').forEach((value, index) => {
      const at = `${path}.activations[${index}]`;
      const activation = this.record(value, at);
      this.oneOf(activation.type, `${at}.type`, ['silu', 'swiglu']);
      if (activation.type === 'swiglu') {
        this.range(activation.alpha, `${at}.alpha`);
        this.range(activation.limit, `${at}.limit`);
      }
    });
    this.range(rule.numExperts, `${path}.numExperts`, 1);
    this.range(rule.topK, `${path}.topK`, 1);
    if (rule.routing !== undefined) {
      this.list(rule.routing, `${path}.routing`, 'at least one routing method').forEach((value, index) => {
        const at = `${path}.routing[${index}]`;
        const routing = this.record(value, at);
        this.oneOf(routing.score, `${at}.score`, ['softmax', 'sigmoid']);
        this.oneOf(routing.order, `${at}.order`, ['score-first', 'topk-first']);
        for (const key of ['renormalize', 'hasCorrectionBias', 'hasRouterBias'])
          if (typeof routing[key] !== 'boolean') this.fail(`${at}.${key}`, 'true or false', routing[key]);
        for (const key of ['numGroups', 'topkGroups', 'scalingFactor'])
          if (!isFiniteNumber(routing[key])) this.fail(`${at}.${key}`, 'a number', routing[key]);
      });
    }
  }

  private device(value: unknown, path: string): void {
    const device = this.record(value, path);
    this.oneOf(device.type, `${path}.type`, ['cpu', 'cuda']);
    if (device.type === 'cpu') {
      for (const key of ['features', 'architectures']) {
        if (device[key] === undefined) continue;
        for (const [index, feature] of this.list(device[key], `${path}.${key}`).entries()) {
          if (typeof feature !== 'string') this.fail(`${path}.${key}[${index}]`, 'a name', feature);
        }
      }
    } else if (Array.isArray(device.sm)) {
      for (const [index, sm] of this.list(device.sm, `${path}.sm`, 'at least one compute capability').entries()) {
        if (!isCount(sm, 10)) this.fail(`${path}.sm[${index}]`, 'a compute capability as major * 10 + minor', sm);
      }
    } else {
      this.range(device.sm, `${path}.sm`, 10);
    }
  }

  private arithmetic(value: unknown, path: string): void {
    const arithmetic = this.record(value, path);
    this.oneOf(arithmetic.weights, `${path}.weights`, ['exact', 'requantized']);
    this.oneOf(arithmetic.accumulator, `${path}.accumulator`, ['f64', 'f32', 'f16']);
    this.oneOf(arithmetic.intermediate, `${path}.intermediate`, ['f32', 'bf16', 'f16']);
    this.oneOf(arithmetic.output, `${path}.output`, ['f32', 'bf16', 'f16']);
    const input = this.record(arithmetic.input, `${path}.input`);
    this.oneOf(input.type, `${path}.input.type`, ['float', 'as-scheme', 'own']);
    if (input.type === 'float') this.oneOf(input.dtype, `${path}.input.dtype`, ['f32', 'bf16', 'f16']);
    if (input.type === 'own') {
      const at = `${path}.input.quantization`;
      const quantization = this.record(input.quantization, at);
      this.oneOf(quantization.type, `${at}.type`, ['none', 'nvfp4', 'fp8', 'int8']);
    }
  }

  /** `least`: smallest integer a bound may be; without it, any number may stand there. */
  private range(value: unknown, path: string, least?: number): void {
    const range = this.record(value, path);
    for (const key of Object.keys(range)) {
      if (key !== 'min' && key !== 'max') this.fail(`${path}.${key}`, 'no field of that name (known: min, max)', range[key]);
      const bound = range[key];
      const isFine = least === undefined ? isFiniteNumber(bound) : isCount(bound, least);
      if (bound !== undefined && !isFine)
        this.fail(`${path}.${key}`, least === undefined ? 'a number' : `an integer of at least ${least}`, bound);
    }
    if (isFiniteNumber(range.min) && isFiniteNumber(range.max) && range.min > range.max) this.fail(path, 'min not above max', range);
  }

  private multiple(value: unknown, path: string): void {
    const { multipleOf, ...range } = this.record(value, path);
    if (!isCount(multipleOf, 1)) this.fail(`${path}.multipleOf`, 'a positive integer', multipleOf);
    this.range(range, path, 1);
  }

  private list(value: unknown, path: string, nonEmpty?: string): readonly unknown[] {
    if (!Array.isArray(value)) this.fail(path, 'a list', value);
    const list: readonly unknown[] = value;
    if (nonEmpty !== undefined && list.length === 0) this.fail(path, nonEmpty, list);
    return list;
  }

  private record(value: unknown, path: string): Record<string, unknown> {
    if (!isRecord(value)) this.fail(path, 'an object', value);
    return value;
  }

  private oneOf(value: unknown, path: string, allowed: readonly string[]): void {
    if (!allowed.some((one) => one === value)) this.fail(path, `one of ${allowed.join(', ')}`, value);
  }

  private fail(path: string, expected: string, actual: unknown): never {
    throw this.error(path, `must be ${expected}; it is ${print(actual)}`, expected, actual);
  }

  private error(path: string, fault: string, expected: string | undefined, actual: unknown): MoeError {
    const where = path === '' ? 'the backend' : path;
    return new MoeError('MOE_PLUGIN_RULE', `Plugin "${this.plugin}", ${this.kind} backend "${this.name}": ${where} ${fault}.`, {
      plugin: this.plugin,
      backend: this.name,
      path,
      expected,
      actual: print(actual),
    });
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isFiniteNumber(value: unknown): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

function isCount(value: unknown, least: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= least;
}

function print(value: unknown): string {
  if (value === undefined) return 'left out';
  if (typeof value === 'function' || typeof value === 'symbol') return `a ${typeof value}`;
  try {
    return JSON.stringify(value);
  } catch {
    return 'not plain data';
  }
}
