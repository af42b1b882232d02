import { isMoeError, messageOf, MoeError, prepareExperts, prepareLinear } from '@moe-server/core';
import type { Binding, LayerSpec, PluginHost, PreparedLayer } from '@moe-server/core';
import type { Device } from '@moe-server/engine';
import { describeEnvironment } from '../calibration/environment.js';
import { createDevice, loadPlugins, makePlan } from '../composition/compose.js';
import { classesToMeasure, countMeasurements, cutLinear, numCopiesOf, sampleOf } from './layer-classes.js';
import type { MeasurableClass, MeasurableRule, RuleFacts } from './layer-classes.js';
import { openLayers } from './layer-source.js';
import type { LayerSource } from './layer-source.js';
import { measureClass, sliceOf } from './measure-class.js';
import type { Copies } from './measure-class.js';
import type { MeasuringCommand, MeasuringMessage, Selection } from './protocol.js';

/**
 * Entry of the process in which `moe-server calibrate` and `bench` run kernels, so that one that crashes or hangs takes nothing else with it. Speaks
 * protocol.ts over the IPC channel and ends with it.
 */

const defaultCallLimitMs = 15_000;

/** Resolves when the message has left: what follows may end the process. */
function send(message: MeasuringMessage): Promise<void> {
  return new Promise((resolve) => {
    // A parent that is gone is noticed by 'disconnect'; there is nobody left to tell.
    if (
      process.send?.(message, undefined, undefined, () => {
        resolve();
      }) === undefined
    )
      resolve();
  });
}

async function measure({ settings, done, excluded }: MeasuringCommand): Promise<void> {
  const { maxNumBatchedTokens, numericsPolicy, budgetMs, selection } = settings;
  const { host, problems } = await loadPlugins(settings);
  checkNames(host, selection);
  const layers = await openLayers(settings, host);
  const device = createDevice(settings);
  try {
    const plan = makePlan(host, layers.description, device.info, {
      maxNumBatchedTokens,
      ...(numericsPolicy === undefined ? {} : { numericsPolicy }),
    });
    const classes = classesToMeasure(layers.description, plan, { done, excluded }, ruleFinder(host), selection);
    const numMeasurements = countMeasurements(classes);
    const sliceMs = sliceOf(budgetMs, numMeasurements);
    await send({
      type: 'begun',
      environment: describeEnvironment(host, device.info),
      problems,
      classes: classes.map(({ spec, layerClass, scheme, numLayers, rules }) => ({ spec, layerClass, scheme, numLayers, rules })),
      numMeasurements,
      expectedMs: numMeasurements * sliceMs,
    });
    for (const one of classes) {
      const spec = sampledSpec(one.spec, selection);
      const times = await measureClass(
        { ...one, spec },
        {
          device,
          sliceMs,
          prepare: (_, rule) => prepareCopies(host, layers.weightsOf, device, { ...one, spec }, rule, selection),
          callLimitMs: settings.callLimitMs ?? defaultCallLimitMs,
          onTrying: (trial, doing, limitMs) => send({ type: 'trying', trial, doing, limitMs }),
          onFailed: (trial, reason, isKernelFault) => void send({ type: 'failed-trial', trial, reason, isKernelFault }),
          onProgress: (count) => void send({ type: 'progress', numMeasurements: count }),
        },
      );
      await send({ type: 'measured', ...times });
    }
    await send({ type: 'done' });
  } finally {
    device.dispose();
    await layers.close();
  }
}

/** @throws {MoeError} MOE_USAGE for a backend or scheme that nobody knows. */
function checkNames({ moeBackends, linearBackends }: PluginHost, selection: Selection): void {
  if (selection.type === 'choices') return;
  const backends = [...moeBackends, ...linearBackends];
  const names = [...new Set(backends.map(({ name }) => name))];
  const schemes = [...new Set(backends.flatMap(({ rules }) => rules.flatMap((rule) => rule.schemes.map(String))))];
  requireKnown('--backend', selection.backends, names);
  requireKnown('--scheme', selection.schemes, schemes);
}

function requireKnown(flag: string, wanted: readonly string[], known: readonly string[]): void {
  const unknown = wanted.find((name) => !known.includes(name));
  if (unknown === undefined) return;
  throw new MoeError('MOE_USAGE', `${flag} ${unknown}: nothing installed has that name; there are ${known.join(', ')}.`, {
    flag,
    unknown,
    known,
  });
}

/** What a bench measures of a layer; a calibration takes linears as they are. */
function sampledSpec(spec: LayerSpec, { type }: Selection): LayerSpec {
  if (spec.kind === 'moe') return sampleOf(spec, type);
  return type === 'all' ? cutLinear(spec) : spec;
}

async function prepareCopies(
  host: PluginHost,
  weightsOf: LayerSource['weightsOf'],
  device: Device,
  one: MeasurableClass,
  rule: MeasurableRule,
  { type }: Selection,
): Promise<Copies> {
  const copies: [PreparedLayer, ...PreparedLayer[]] = [await prepare(host, weightsOf, device, one, rule)];
  const numCopies = type === 'all' && one.spec.kind === 'linear' ? numCopiesOf(one.spec) : 1;
  try {
    while (copies.length < numCopies) copies.push(await prepare(host, weightsOf, device, one, rule));
  } catch (thrown) {
    for (const layer of copies) layer.dispose();
    throw thrown;
  }
  return copies;
}

/** The way of a start, with one rule in place of the plan's choice and without a check against the reference: that is the start's. */
function prepare(
  host: PluginHost,
  weightsOf: LayerSource['weightsOf'],
  { info }: Device,
  { spec, layerPlan }: MeasurableClass,
  { backend, rule, layout, min, max }: MeasurableRule,
): Promise<PreparedLayer> {
  const binding: Binding = { backend, rule, layout, tokens: { min, max }, numerics: 'same', built: true, because: 'to be measured' };
  const planned = { ...layerPlan, bindings: [binding] };
  const context = { device: info, maxNumTokens: max };
  return spec.kind === 'moe'
    ? prepareExperts(host, planned, spec, weightsOf.experts(spec), context)
    : prepareLinear(host, planned, spec, weightsOf.linear(spec), context);
}

function ruleFinder({
  moeBackends,
  linearBackends,
}: PluginHost): (kind: LayerSpec['kind'], backend: string, rule: string) => RuleFacts | undefined {
  return (kind, backend, rule) => {
    const backends = kind === 'moe' ? moeBackends : linearBackends;
    return backends.find(({ name }) => name === backend)?.rules.find(({ id }) => id === rule);
  };
}

function asMoeError(thrown: unknown): MoeError {
  if (isMoeError(thrown)) return thrown;
  return new MoeError('MOE_INTERNAL', messageOf(thrown), { stack: thrown instanceof Error ? thrown.stack : undefined });
}

process.on('disconnect', () => {
  process.exit(1);
});
process.once('message', (command: MeasuringCommand) => {
  measure(command)
    .catch((thrown: unknown) => send({ type: 'failed', error: asMoeError(thrown).toJSON() }))
    .finally(() => {
      process.exit();
    });
});
