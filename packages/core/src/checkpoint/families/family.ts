import type { ConfigReader } from '../config-reader.js';
import type { ModelBuilder } from '../model-builder.js';

/** What the core knows of one kind of model: names of its modules, sizes, routing. */
export interface ModelFamily {
  /** `model_type` of config.json, also that of `text_config`. */
  readonly modelTypes: readonly string[];
  /** Values of `architectures[0]`. */
  readonly architectures: readonly string[];
  /**
   * Adds all linears and experts of the model.
   *
   * @returns number of decoder layers, prediction heads left out.
   * @throws {MoeError} MOE_CHECKPOINT_CONFIG
   */
  readonly describe: (builder: ModelBuilder, config: ConfigReader) => number;
}
