import { Checkpoint, describeModel, openExpertWeights, openLinearWeights } from '@moe-server/core';
import type { ExpertGroupSpec, ExpertWeights, LinearSpec, LinearWeights, ModelDescription, PluginHost, SchemeKey } from '@moe-server/core';
import { expertGroup, linearSpec } from '@moe-server/core/conformance';
import type { LayerShape, MeasuringSettings } from './protocol.js';
import { hasRandomWeights, randomExpertWeights, randomLinearWeights } from './random-weights.js';

/** Layers to measure kernels on, and where their weights come from. */
export interface LayerSource {
  readonly description: ModelDescription;
  readonly weightsOf: {
    readonly experts: (group: ExpertGroupSpec) => ExpertWeights;
    readonly linear: (linear: LinearSpec) => LinearWeights;
  };
  readonly close: () => Promise<void>;
}

/**
 * A checkpoint's layers or a shape's. For `bench` weights are random: nothing but headers is read, and layers can be cut.
 *
 * @throws {MoeError} of the checkpoint.
 */
export async function openLayers({ model, selection, kvCacheDtype = 'auto' }: MeasuringSettings, host: PluginHost): Promise<LayerSource> {
  const random = { experts: randomExpertWeights, linear: randomLinearWeights };
  if (typeof model !== 'string') {
    return { description: describeShape(model, schemesOf(host)), weightsOf: random, close: () => Promise.resolve() };
  }
  const checkpoint = await Checkpoint.open(model);
  try {
    const ofCheckpoint = {
      experts: (group: ExpertGroupSpec) => openExpertWeights(checkpoint, group),
      linear: (linear: LinearSpec) => openLinearWeights(checkpoint, linear),
    };
    const description = describeModel(checkpoint, { kvCache: kvCacheDtype });
    return { description, weightsOf: selection.type === 'all' ? random : ofCheckpoint, close: () => checkpoint.close() };
  } catch (thrown) {
    await checkpoint.close();
    throw thrown;
  }
}

/** What installed backends run and random weights exist for. */
function schemesOf({ moeBackends, linearBackends }: PluginHost): string[] {
  const schemes = [...moeBackends, ...linearBackends].flatMap(({ rules }) => rules.flatMap((rule) => rule.schemes.map(String)));
  return [...new Set(schemes)].filter(hasRandomWeights);
}

/** Rows of the linear over its columns: about that of the query, key and value projections of current models in one. */
const linearRatio = 4;

/** One layer of experts and one linear in every scheme, as if there were a checkpoint that had them. */
function describeShape(shape: LayerShape, schemes: readonly string[]): ModelDescription {
  const { hiddenSize } = shape;
  return {
    architecture: 'none',
    modelType: 'none',
    numLayers: 1,
    // Names of layers are the keys of a plan.
    groups: schemes.map((scheme) => ({ ...expertGroup({ ...shape, w13: scheme as SchemeKey }), name: `experts in ${scheme}` })),
    linears: schemes.map((scheme) => ({
      ...linearSpec(scheme as SchemeKey, hiddenSize, [linearRatio * hiddenSize]),
      name: `linear in ${scheme}`,
    })),
    kvCacheScheme: 'none',
    kvCacheDType: 'bf16',
    quantization: 'random weights',
    draftProblem: undefined,
  };
}
