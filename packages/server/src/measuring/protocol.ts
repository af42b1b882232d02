import type { DotType, KvCacheChoice, LayerSpec, MeasuredClass, NumericsPolicy, SerializedMoeError, TimedRule } from '@moe-server/core';
import type { DeviceOptions, PluginOptions } from '../composition/engine-settings.js';
import type { CalibrationEnvironment } from '../calibration/environment.js';

/** What measuring depends on. Plain data: it crosses the process border. */
export interface MeasuringSettings extends PluginOptions, DeviceOptions {
  /** Whose layers: those of a checkpoint's folder, or of a shape. */
  readonly model: string | LayerShape;
  readonly selection: Selection;
  /** The largest call that is timed. */
  readonly maxNumBatchedTokens: number;
  /** Rules may not take layers whose results are stored narrow. Default auto, as the checkpoint says. */
  readonly kvCacheDtype?: KvCacheChoice;
  readonly numericsPolicy?: NumericsPolicy;
  /** Time that all measurements together should take; reading and packing weights come on top. */
  readonly budgetMs: number;
  /** A call of a kernel that has not ended after this time hangs. Default 15 s; no call is started that should take a seventh of that. */
  readonly callLimitMs?: number;
}

/** Which kernels are timed, and on what. */
export type Selection =
  /** For `calibrate`: where there are two or more to choose from, at sizes that occur, on weights of the model. */
  | { readonly type: 'choices' }
  /** For `bench`: all that are usable, on random weights, more of them than caches hold. */
  | {
      readonly type: 'all';
      /** Tokens of a call, ascending. */
      readonly sizes: readonly number[];
      /** Names; empty = every backend. */
      readonly backends: readonly string[];
      /** Keys; empty = all that the layers have, or, of a shape, that backends run. */
      readonly schemes: readonly string[];
    };

/** Sizes of layers that no checkpoint has to have. */
export interface LayerShape {
  readonly hiddenSize: number;
  readonly moeIntermediateSize: number;
  readonly numExperts: number;
  readonly topK: number;
}

/** A rule on a class of layers. */
export interface Trial {
  readonly kind: LayerSpec['kind'];
  readonly layerClass: string;
  /** One layer of the class: the one whose weights are used. */
  readonly layer: string;
  readonly backend: string;
  readonly rule: string;
}

/** A rule with what bounds it where memory does not. */
export interface RuleToMeasure extends TimedRule {
  readonly dots: DotType;
}

/** A class of layers with the rules that cover it. */
export interface ClassToMeasure {
  readonly layerClass: string;
  /** One layer of the class: the one whose weights are used. */
  readonly spec: LayerSpec;
  readonly scheme: string;
  readonly numLayers: number;
  readonly rules: readonly RuleToMeasure[];
}

/** What the calls of a class had to read and to multiply. */
export interface ClassWork {
  /** By size; empty for linears, whose calls read all weights and multiply every token with all of them. */
  readonly calls: readonly CallWork[];
  /** Packed bytes: of a linear, or of one expert. */
  readonly weights: readonly { readonly backend: string; readonly rule: string; readonly bytes: number }[];
  /** Rows of a linear that were there; a vocabulary projection is cut. */
  readonly outFeatures: number | undefined;
}

/** Experts of a call, on average over the calls that were timed. */
export interface CallWork {
  readonly numTokens: number;
  /** Different ones that its tokens chose. */
  readonly numExperts: number;
  /** Tokens times the experts that each chose, without those that the sample leaves out. */
  readonly numChoices: number;
}

/** To the process that measures. The first and only command; the process ends by itself, or with its parent. */
export interface MeasuringCommand {
  readonly settings: MeasuringSettings;
  /** Classes that an earlier process has measured. */
  readonly done: readonly string[];
  /** What killed an earlier process or failed in it. */
  readonly excluded: readonly Pick<Trial, 'layerClass' | 'backend' | 'rule'>[];
}

/** From the process that measures. */
export type MeasuringMessage =
  | {
      readonly type: 'begun';
      readonly environment: CalibrationEnvironment;
      readonly problems: readonly string[];
      readonly classes: readonly ClassToMeasure[];
      readonly numMeasurements: number;
      readonly expectedMs: number;
    }
  /** Sent before the code of a plugin runs: when the process dies or falls silent after it, this was why. */
  | { readonly type: 'trying'; readonly trial: Trial; readonly doing: string; readonly limitMs: number }
  /** One size of one rule was timed, or will not be. */
  | { readonly type: 'progress'; readonly numMeasurements: number }
  /** A rule failed without taking the process along. */
  | { readonly type: 'failed-trial'; readonly trial: Trial; readonly reason: string; readonly isKernelFault: boolean }
  | { readonly type: 'measured'; readonly measured: MeasuredClass; readonly work: ClassWork }
  /** The last message of a process that did its work. */
  | { readonly type: 'done' }
  /** The last message of one that could not. */
  | { readonly type: 'failed'; readonly error: SerializedMoeError };
