import {
  Checkpoint,
  describeModel,
  isMoeError,
  messageOf,
  MoeError,
  openExpertWeights,
  openLinearWeights,
  prepareExperts,
  prepareLinear,
} from '@moe-server/core';
import type { Binding, PluginHost, PreparedLayer } from '@moe-server/core';
import type { Device } from '@moe-server/engine';
import { createDevice, loadPlugins, makePlan } from '../composition/compose.js';
import { describeEnvironment } from './environment.js';
import { classesToMeasure, countMeasurements, sampleOf } from './layer-classes.js';
import type { MeasurableClass, MeasurableRule } from './layer-classes.js';
import { measureClass, sliceOf } from './measure-class.js';
import type { CalibrationCommand, CalibrationMessage } from './protocol.js';

/**
 * Entry of the process in which `moe-server calibrate` runs kernels, so that one that crashes or hangs takes nothing else with it. Speaks
 * protocol.ts over the IPC channel and ends with it.
 */

const defaultCallLimitMs = 15_000;

/** Resolves when the message has left: what follows may end the process. */
function send(message: CalibrationMessage): Promise<void> {
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

async function calibrate({ settings, done, excluded }: CalibrationCommand): Promise<void> {
  const { maxNumBatchedTokens, numericsPolicy, budgetMs } = settings;
  const { host, problems } = await loadPlugins(settings);
  const checkpoint = await Checkpoint.open(settings.model);
  const device = createDevice(settings);
  try {
    const description = describeModel(checkpoint, { kvCache: settings.kvCacheDtype ?? 'auto' });
    const plan = makePlan(host, description, device.info, {
      maxNumBatchedTokens,
      ...(numericsPolicy === undefined ? {} : { numericsPolicy }),
    });
    const classes = classesToMeasure(description, plan, { done, excluded }, layoutsOf(host));
    const numMeasurements = countMeasurements(classes);
    await send({
      type: 'begun',
      environment: describeEnvironment(host, device.info),
      problems,
      classes: classes.map(({ spec, layerClass, scheme, numLayers, rules }) => ({ spec, layerClass, scheme, numLayers, rules })),
      numMeasurements,
      expectedMs: numMeasurements * sliceOf(budgetMs, numMeasurements),
    });
    const sliceMs = sliceOf(budgetMs, numMeasurements);
    for (const one of classes) {
      const spec = one.spec.kind === 'moe' ? sampleOf(one.spec) : one.spec;
      const measured = await measureClass(
        { ...one, spec },
        {
          device,
          sliceMs,
          prepare: (_, rule) => prepare(host, checkpoint, device, { ...one, spec }, rule),
          callLimitMs: settings.callLimitMs ?? defaultCallLimitMs,
          onTrying: (trial, doing, limitMs) => send({ type: 'trying', trial, doing, limitMs }),
          onFailed: (trial, reason, isKernelFault) => void send({ type: 'failed-trial', trial, reason, isKernelFault }),
          onProgress: (count) => void send({ type: 'progress', numMeasurements: count }),
        },
      );
      await send({ type: 'measured', measured });
    }
    await send({ type: 'done' });
  } finally {
    device.dispose();
    await checkpoint.close();
  }
}

/** The way of a start, with one rule in place of the plan's choice and without a check against the reference: that is the start's. */
function prepare(
  host: PluginHost,
  checkpoint: Checkpoint,
  { info }: Device,
  { spec, layerPlan }: MeasurableClass,
  { backend, rule, layout, min, max }: MeasurableRule,
): Promise<PreparedLayer> {
  const binding: Binding = { backend, rule, layout, tokens: { min, max }, numerics: 'same', built: true, because: 'to be measured' };
  const planned = { ...layerPlan, bindings: [binding] };
  const context = { device: info, maxNumTokens: max };
  return spec.kind === 'moe'
    ? prepareExperts(host, planned, spec, openExpertWeights(checkpoint, spec), context)
    : prepareLinear(host, planned, spec, openLinearWeights(checkpoint, spec), context);
}

function layoutsOf(host: PluginHost): (kind: 'moe' | 'linear', backend: string, rule: string) => string {
  const rules = [...host.moeBackends, ...host.linearBackends].flatMap(({ kind, name, rules: own }) =>
    own.map(({ id, layout }) => [`${kind} ${name}/${id}`, layout] as const),
  );
  const layouts = new Map(rules);
  return (kind, backend, rule) => layouts.get(`${kind} ${backend}/${rule}`) ?? '';
}

function asMoeError(thrown: unknown): MoeError {
  if (isMoeError(thrown)) return thrown;
  return new MoeError('MOE_INTERNAL', messageOf(thrown), { stack: thrown instanceof Error ? thrown.stack : undefined });
}

process.on('disconnect', () => {
  process.exit(1);
});
process.once('message', (command: CalibrationCommand) => {
  calibrate(command)
    .catch((thrown: unknown) => send({ type: 'failed', error: asMoeError(thrown).toJSON() }))
    .finally(() => {
      process.exit();
    });
});
