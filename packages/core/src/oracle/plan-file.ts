import type { DeviceInfo } from '../device-info.js';
import { MoeError, messageOf } from '../errors.js';
import { canonicalJson, planHash } from './plan-hash.js';
import type { LayerPlan, Plan } from './plan-types.js';

/** First field of the file: what it is, whoever finds it. */
const format = 'moe-server plan';
const version = 1;

/** A plugin that took part in a plan. */
export interface PlanPlugin {
  readonly name: string;
  readonly version: string;
}

/** Content of a `plan.lock.json`. */
export interface PlanFile {
  readonly plan: Plan;
  /** By name; empty when nobody noted them. */
  readonly plugins: readonly PlanPlugin[];
}

/**
 * The text of a `plan.lock.json`: JSON with keys in order and one layer per line, so that equal plans give equal files and version control
 * shows the layers that moved. Layers that were judged alike share one entry of `explanations`.
 */
export function writePlanFile(plan: Plan, plugins: readonly PlanPlugin[] = []): string {
  const { layers, ...rest } = plan;
  const explanations: string[] = [];
  const known = new Map<string, number>();
  // Layers of one class share these lists, so most texts are found by identity.
  const texts = new Map<unknown, string>();
  const textOf = (value: unknown): string => {
    const text = texts.get(value) ?? canonicalJson(value);
    texts.set(value, text);
    return text;
  };
  const lines = layers.map(({ eligible, refused, ...layer }) => {
    const explanation = `{"eligible":${textOf(eligible)},"refused":${textOf(refused)}}`;
    let index = known.get(explanation);
    if (index === undefined) {
      index = explanations.push(explanation) - 1;
      known.set(explanation, index);
    }
    return canonicalJson({ ...layer, explanation: index });
  });
  const sorted = [...plugins].sort((a, b) => (a.name < b.name ? -1 : 1)).map(({ name, version: release }) => ({ name, version: release }));
  const head = { format, ...rest, plugins: sorted };
  const fields = Object.entries(head).map(([key, value]) => `${JSON.stringify(key)}:${canonicalJson(value)}`);
  return `{\n${fields.join(',\n')},\n"explanations":[\n${explanations.join(',\n')}\n],\n"layers":[\n${lines.join(',\n')}\n]\n}\n`;
}

/**
 * Reads what {@link writePlanFile} wrote, or the output of `moe-server plan --json`. Everything that a comparison will rely on is checked, and
 * so is the hash: a plan that somebody edited is none.
 *
 * @param file - its name, for messages.
 * @throws {MoeError} MOE_PLAN_FILE; `details.field` is the faulty field.
 */
export function readPlanFile(text: string, file: string): PlanFile {
  const reader = new PlanReader(file);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw reader.error('', `it is not JSON, or not all of it is there (${messageOf(cause)})`, {}, cause);
  }
  return reader.planFile(value);
}

type Fields = Readonly<Record<string, unknown>>;

class PlanReader {
  constructor(private readonly file: string) {}

  planFile(value: unknown): PlanFile {
    if (!isRecord(value) || !Array.isArray(value.layers) || typeof value.hash !== 'string' || (value.format ?? format) !== format) {
      throw this.error('', 'it is JSON, but not a plan');
    }
    if (value.version !== version) {
      throw this.error('version', `it is a plan of version ${JSON.stringify(value.version)}, and this release reads version ${version}`, {
        expected: version,
        actual: value.version,
      });
    }
    const { device, assumesBuilt, maxNumTokens, layers, unserved, bytes, notices, hash } = value;
    this.device(device);
    this.expect(typeof assumesBuilt === 'boolean', 'assumesBuilt', 'true or false', assumesBuilt);
    this.expect(isCount(maxNumTokens), 'maxNumTokens', 'a positive integer', maxNumTokens);
    this.strings(unserved, 'unserved');
    this.strings(notices, 'notices');
    this.bytes(bytes, 'bytes');
    const checked = this.layers(layers, value.explanations);
    const plan = { version, device, assumesBuilt, maxNumTokens, layers: checked, unserved, bytes, notices, hash } as Plan;
    const actual = planHash(plan);
    if (actual !== plan.hash) {
      throw this.error('hash', 'its layers do not have the hash that it states: it was edited or damaged', {
        expected: plan.hash,
        actual,
      });
    }
    return { plan, plugins: this.plugins(value.plugins) };
  }

  error(field: string, reason: string, details: Fields = {}, cause?: unknown): MoeError {
    // The name may be that of another file, which must not be written over.
    const message = `${this.file}: ${reason}. A plan is what "moe-server plan --out FILE" writes; make it anew.`;
    return new MoeError('MOE_PLAN_FILE', message, { file: this.file, field, ...details }, cause === undefined ? {} : { cause });
  }

  private layers(value: unknown, explanations: unknown): readonly LayerPlan[] {
    const shared = explanations === undefined ? undefined : this.list(explanations, 'explanations');
    shared?.forEach((one, index) => {
      this.explanation(this.record(one, `explanations[${index}]`), `explanations[${index}]`);
    });
    const names = new Set<string>();
    return this.list(value, 'layers').map((one, index) => {
      const path = `layers[${index}]`;
      const { explanation, ...layer } = this.record(one, path);
      const { name, kind, role, scheme, experts, cachedAs } = layer;
      for (const [field, text] of Object.entries({ name, scheme }))
        this.expect(typeof text === 'string', `${path}.${field}`, 'a name', text);
      this.expect(kind === 'moe' || kind === 'linear', `${path}.kind`, '"moe" or "linear"', kind);
      this.expect(role === 'target' || role === 'draft', `${path}.role`, '"target" or "draft"', role);
      const identity = `${String(kind)} ${String(name)}`;
      this.expect(!names.has(identity), `${path}.name`, 'a name that no other layer has', name);
      names.add(identity);
      if (experts !== undefined)
        for (const id of this.list(experts, `${path}.experts`)) this.expect(Number.isInteger(id), `${path}.experts`, 'integers', id);
      this.expect(cachedAs === undefined || cachedAs === 'f8e4m3', `${path}.cachedAs`, '"f8e4m3" or left out', cachedAs);
      this.bindings(layer.bindings, `${path}.bindings`);
      this.bytes(layer.bytes, `${path}.bytes`);
      if (shared === undefined) {
        this.explanation(layer, path);
        return layer as unknown as LayerPlan;
      }
      const found = typeof explanation === 'number' ? shared[explanation] : undefined;
      this.expect(found !== undefined, `${path}.explanation`, 'the position of an entry of "explanations"', explanation);
      return { ...layer, ...(found as Fields) } as unknown as LayerPlan;
    });
  }

  private bindings(value: unknown, path: string): void {
    let next = 1;
    this.list(value, path).forEach((one, index) => {
      const at = `${path}[${index}]`;
      const { backend, rule, layout, numerics, built, because, tokens, packedBy } = this.record(one, at);
      for (const [field, text] of Object.entries({ backend, rule, layout, because }))
        this.expect(typeof text === 'string', `${at}.${field}`, 'a text', text);
      this.expect(
        numerics === 'same' || numerics === 'wider' || numerics === 'approximate',
        `${at}.numerics`,
        'a numerics class',
        numerics,
      );
      this.expect(typeof built === 'boolean', `${at}.built`, 'true or false', built);
      const { min, max } = this.record(tokens, `${at}.tokens`);
      this.expect(min === next && isCount(max) && max >= min, `${at}.tokens`, `an interval that begins at ${next}`, tokens);
      next = (max as number) + 1;
      if (packedBy === undefined) return;
      const packer = this.record(packedBy, `${at}.packedBy`);
      this.expect(
        typeof packer.backend === 'string' && typeof packer.rule === 'string',
        `${at}.packedBy`,
        'a backend and a rule',
        packedBy,
      );
    });
  }

  private explanation({ eligible, refused }: Fields, path: string): void {
    this.list(eligible, `${path}.eligible`).forEach((one, index) => {
      const { backend, rule, because } = this.record(one, `${path}.eligible[${index}]`);
      for (const [field, text] of Object.entries({ backend, rule, because }))
        this.expect(typeof text === 'string', `${path}.eligible[${index}].${field}`, 'a text', text);
    });
    this.list(refused, `${path}.refused`).forEach((one, index) => {
      const at = `${path}.refused[${index}]`;
      const { backend, rule, reasons } = this.record(one, at);
      for (const [field, text] of Object.entries({ backend, rule }))
        this.expect(typeof text === 'string', `${at}.${field}`, 'a name', text);
      for (const reason of this.list(reasons, `${at}.reasons`)) {
        const { dimension, message } = this.record(reason, `${at}.reasons`);
        this.expect(typeof dimension === 'string' && typeof message === 'string', `${at}.reasons`, 'dimensions and sentences', reason);
      }
    });
  }

  private device(value: unknown): void {
    const device = this.record(value, 'device') as Partial<Record<keyof DeviceInfo | 'sm' | 'features' | 'architecture', unknown>>;
    this.expect(typeof device.name === 'string', 'device.name', 'a text', device.name);
    if (device.type === 'cuda') this.expect(isCount(device.sm), 'device.sm', 'a compute capability', device.sm);
    else {
      this.expect(device.type === 'cpu', 'device.type', '"cpu" or "cuda"', device.type);
      this.expect(typeof device.architecture === 'string', 'device.architecture', 'a text', device.architecture);
      this.strings(device.features, 'device.features');
    }
  }

  private bytes(value: unknown, path: string): void {
    const bytes = this.record(value, path);
    for (const field of ['residentBytes', 'preparePeakBytes', 'workspaceBytes'])
      this.expect(typeof bytes[field] === 'number', `${path}.${field}`, 'a number', bytes[field]);
  }

  private plugins(value: unknown): readonly PlanPlugin[] {
    return (value === undefined ? [] : this.list(value, 'plugins')).map((one, index) => {
      const { name, version: release } = this.record(one, `plugins[${index}]`);
      this.expect(typeof name === 'string' && typeof release === 'string', `plugins[${index}]`, 'a name and a version', one);
      return { name: name as string, version: release as string };
    });
  }

  private strings(value: unknown, path: string): void {
    for (const text of this.list(value, path)) this.expect(typeof text === 'string', path, 'texts', text);
  }

  private list(value: unknown, path: string): readonly unknown[] {
    this.expect(Array.isArray(value), path, 'a list', value);
    return value as readonly unknown[];
  }

  private record(value: unknown, path: string): Fields {
    this.expect(isRecord(value), path, 'an object', value);
    return value as Fields;
  }

  private expect(isFine: boolean, path: string, expected: string, actual: unknown): void {
    if (isFine) return;
    const came = actual === undefined ? 'left out' : JSON.stringify(actual).slice(0, 80);
    throw this.error(path, `${path} must be ${expected}; it is ${came}`, { expected, actual });
  }
}

function isRecord(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 1;
}
