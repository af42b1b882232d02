import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import fc from 'fast-check';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { isMoeError } from '../../src/errors.js';
import { withFolder, writeConfig, writeSafetensors } from './checkpoint-writer.js';
import { tinyQwen3Moe } from './tiny-models.js';

/** Opens, describes and reads everything. */
async function readAll(folder: string): Promise<void> {
  const checkpoint = await Checkpoint.open(folder);
  try {
    const { groups, linears } = describeModel(checkpoint);
    for (const group of groups) {
      const weights = openExpertWeights(checkpoint, group);
      for (let slot = 0; slot < weights.numExperts; slot++) await weights.expert(slot);
    }
    for (const linear of linears) {
      const weights = openLinearWeights(checkpoint, linear);
      for (let index = 0; index < weights.numModules; index++) await weights.module(index);
    }
  } finally {
    await checkpoint.close();
  }
}

describe('a damaged checkpoint', () => {
  it('is read or refused with a MoeError, whatever bytes change and wherever the file ends', () =>
    withFolder(async (folder) => {
      const { config, tensors } = tinyQwen3Moe((module) => (module.includes('.experts.') ? 'nvfp4' : 'bf16'));
      const quantization = {
        quant_method: 'modelopt',
        quant_algo: 'MIXED_PRECISION',
        quantized_layers: { 'model.layers.0.mlp.experts': { quant_algo: 'NVFP4' } },
      };
      await writeConfig(folder, { ...config, quantization_config: quantization });
      const file = join(folder, 'model.safetensors');
      await writeSafetensors(file, tensors);
      await readAll(folder);
      const whole = await readFile(file);
      const headerBytes = 8 + Number(whole.readBigUInt64LE(0));
      const position = fc.oneof(fc.nat(headerBytes - 1), fc.nat(whole.length - 1));
      const change = fc.tuple(position, fc.oneof(fc.nat(255), fc.constantFrom(0x22, 0x2d, 0x39, 0x7b, 0x7f, 0xff)));
      await fc.assert(
        fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 4 }), fc.option(fc.nat(whole.length)), async (changes, end) => {
          const bytes = Buffer.from(whole);
          for (const [at, value] of changes) bytes[at] = value;
          await writeFile(file, bytes.subarray(0, end ?? bytes.length));
          try {
            await readAll(folder);
          } catch (error) {
            if (!isMoeError(error) || (error as { readonly code: string }).code === 'MOE_INTERNAL') throw error;
          }
        }),
        { seed: 50, numRuns: 200 },
      );
    }));
});
