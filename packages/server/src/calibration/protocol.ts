import type { KvCacheChoice, LayerSpec, MeasuredClass, NumericsPolicy, SerializedMoeError, TimedRule } from '@moe-server/core';
import type { DeviceOptions, PluginOptions } from '../composition/compose.js';
import type { CalibrationEnvironment } from './environment.js';

/** What a calibration depends on. Plain data: it crosses the process border. */
export interface CalibrationSettings extends PluginOptions, DeviceOptions {
  /** Folder of the checkpoint. */
  readonly model: string;
  /** The largest call that is timed. */
  readonly maxNumBatchedTokens: number;
  readonly kvCacheDtype?: KvCacheChoice;
  readonly numericsPolicy?: NumericsPolicy;
  /** Time that all measurements together should take; reading and packing weights come on top. */
  readonly budgetMs: number;
  /** A call of a kernel that has not ended after this time hangs. Default 15 s; no call is started that should take a seventh of that. */
  readonly callLimitMs?: number;
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

/** A class of layers with the rules that cover it. */
export interface ClassToMeasure {
  readonly layerClass: string;
  /** One layer of the class: the one whose weights are used. */
  readonly spec: LayerSpec;
  readonly scheme: string;
  readonly numLayers: number;
  readonly rules: readonly TimedRule[];
}

/** To the process that measures. The first and only command; the process ends by itself, or with its parent. */
export interface CalibrationCommand {
  readonly settings: CalibrationSettings;
  /** Classes that an earlier process has measured. */
  readonly done: readonly string[];
  /** What killed an earlier process or failed in it. */
  readonly excluded: readonly Pick<Trial, 'layerClass' | 'backend' | 'rule'>[];
}

/** From the process that measures. */
export type CalibrationMessage =
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
  | { readonly type: 'measured'; readonly measured: MeasuredClass }
  /** The last message of a process that did its work. */
  | { readonly type: 'done' }
  /** The last message of one that could not. */
  | { readonly type: 'failed'; readonly error: SerializedMoeError };
