import type { LinearBackend, LinearSupportRule } from '../backend.js';
import type { LinearSpec } from '../layer-spec.js';
import { schemeInfo } from '../quant/quant-scheme.js';
import { deviceRefusal } from '../oracle/dimensions.js';
import type { SchemeKey } from '../quant/quant-scheme.js';
import { linearCases, qualityCases } from './cases.js';
import type { LinearCase } from './cases.js';
import { linearSpec, randomRows } from './layers.js';
import { openLinearSubject } from './linear-subject.js';
import { Random } from '../random.js';
import { declare, declareSkipFaults, once, skipReason } from './runner.js';
import { clampTo, sizeFor } from './sizes.js';
import type { Subject, SubjectCall } from './subject.js';
import { checkCall, declareQualityCases, suiteContext } from './suite.js';
import type { ConformanceOptions, SuiteContext } from './suite.js';

export interface LinearConformanceOptions<S extends SchemeKey> extends ConformanceOptions {
  readonly create: () => LinearBackend<S>;
}

/** As describeMoeBackend, for linears: each rule that the device can run, with each scheme, with and without bias. */
export function describeLinearBackend<S extends SchemeKey>(options: LinearConformanceOptions<S>): void {
  const context = suiteContext(options);
  // As in describeMoeBackend: every rule is handed only schemes that it lists.
  const backend = options.create() as unknown as LinearBackend;
  const caseIds = [...linearCases, ...qualityCases].map(({ id }) => id);
  const ruleIds = backend.rules.map(({ id }) => id);
  const { runner } = context;
  runner.describe(`LinearBackend ${options.name}`, () => {
    declareSkipFaults(runner, context.skips, caseIds, ruleIds);
    runner.it('names its rules once, and has one for this device', () => {
      const doubles = ruleIds.filter((id, i) => ruleIds.indexOf(id) !== i);
      if (doubles.length > 0) return Promise.reject(new Error(`Rule ids are not unique: ${doubles.join(', ')}.`));
      if (backend.rules.some((rule) => deviceRefusal(options.device, rule.device) === undefined)) return Promise.resolve();
      return Promise.reject(new Error(`No rule covers the device at hand, ${options.device.name}: there is nothing to judge.`));
    });
    for (const rule of backend.rules) describeRule(context, backend, rule);
  });
}

function describeRule(context: SuiteContext, backend: LinearBackend, rule: LinearSupportRule): void {
  const { runner, options } = context;
  runner.describe(`rule ${rule.id}`, () => {
    const unusable = deviceRefusal(options.device, rule.device)?.message ?? backend.missing?.(rule);
    if (unusable !== undefined) {
      declare(runner, 'runs on this device', unusable, () => Promise.resolve());
      return;
    }
    for (const scheme of rule.schemes) {
      for (const hasBias of rule.bias === true ? [false, true] : [false]) describeLinear(context, backend, rule, scheme, hasBias);
    }
  });
}

function describeLinear(context: SuiteContext, backend: LinearBackend, rule: LinearSupportRule, scheme: SchemeKey, hasBias: boolean): void {
  const { runner, options, seed } = context;
  runner.describe(`${scheme}${hasBias ? ', bias' : ''}`, () => {
    const opened: Subject[] = [];
    const open = (variant: LinearCase['variant']): { readonly refusal: string | undefined; readonly subject: () => Promise<Subject> } => {
      const linear = linearFor(rule, scheme, hasBias, variant);
      if (linear === undefined)
        return { refusal: 'the rule allows no such size', subject: () => Promise.reject(new Error('no such size')) };
      return {
        refusal: backend.refuse?.(linear, rule, options.device)?.message,
        subject: once(async () => {
          const subject = await openLinearSubject(context, backend, rule, linear);
          opened.push(subject);
          return subject;
        }),
      };
    };
    const layers = { usual: open('usual'), smallest: open('smallest'), 'odd-multiples': open('odd-multiples'), fused: open('fused') };
    linearCases.forEach(({ id, title, variant, numTokens, accumulate }, index) => {
      // With a bias only what a bias can break is run again.
      if (hasBias && variant !== 'usual' && variant !== 'fused') return;
      const { refusal, subject } = layers[variant];
      declare(runner, title, skipReason(context.skips, id, rule.id) ?? refusal, async () => {
        const random = new Random(seed).fork(index);
        for (const count of new Set(numTokens.map((wanted) => clampTo(rule.tokens, wanted)))) {
          const ready = await subject();
          await checkCall(ready, linearCall(ready, count, random), accumulate, random);
        }
      });
    });
    if (!hasBias && layers.fused.refusal === undefined) {
      declareQualityCases(context, {
        ruleId: rule.id,
        rule,
        scheme,
        isStorable: backend.storage !== undefined,
        open: layers.fused.subject,
        makeCall: linearCall,
        clampTokens: (numTokens) => clampTo(rule.tokens, numTokens),
      });
    }
    runner.after?.(() => {
      for (const { kernel, packed } of opened) {
        kernel.dispose();
        packed.dispose();
      }
    });
  });
}

function linearCall(subject: Subject, numTokens: number, random: Random): SubjectCall {
  const rows = randomRows(numTokens, subject.inputWidth, random);
  return { numTokens, rows, topK: 0, topkSlots: new Int32Array(0), topkWeights: new Float32Array(0) };
}

/** The linear of a variant; undefined when the rule allows no such sizes. */
function linearFor(rule: LinearSupportRule, scheme: SchemeKey, hasBias: boolean, variant: LinearCase['variant']): LinearSpec | undefined {
  const { inFeatures, outFeatures } = rule.sizes;
  const columns = sizeFor(variant, inFeatures, scheme, 160, 3);
  if (variant === 'fused') {
    // The sum must suit the rule; modules of 128x128 blocks start on a block, so that the fusion is one, too.
    const unit = leastFusedUnit(outFeatures.multipleOf, scheme);
    const total = 4 * unit;
    if (columns === undefined || total < (outFeatures.min ?? 0) || total > (outFeatures.max ?? Infinity)) return undefined;
    return linearSpec(scheme, columns, [2 * unit, unit, unit], hasBias);
  }
  const rows = sizeFor(variant, outFeatures, undefined, 144, 5);
  return columns === undefined || rows === undefined ? undefined : linearSpec(scheme, columns, [rows], hasBias);
}

function leastFusedUnit(multipleOf: number, scheme: string): number {
  const blockRows = schemeInfo(scheme)?.key === 'fp8.block128' ? 128 : 32;
  return Math.ceil(blockRows / multipleOf) * multipleOf;
}
