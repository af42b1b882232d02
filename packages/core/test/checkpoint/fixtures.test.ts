import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { ReferenceTensor } from '@moe-server/test-kit';
import { fixtureFolders, readSafetensors, valuesOf } from '@moe-server/test-kit';
import { expect } from 'chai';
import type { ModelDescription } from '../../src/checkpoint/describe-model.js';
import { describeModel } from '../../src/checkpoint/describe-model.js';
import { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { openExpertWeights } from '../../src/checkpoint/expert-weights.js';
import { findExpertStorage } from '../../src/checkpoint/expert-storage.js';
import { openLinearWeights } from '../../src/checkpoint/linear-weights.js';
import { decodeWeights } from '../../src/quant/decode-weights.js';
import type { SchemeKey } from '../../src/quant/quant-scheme.js';

interface Reference {
  readonly family: string;
  readonly schemes: Readonly<Record<string, string>>;
  readonly dequant_sha256: Readonly<Record<string, string>>;
}

/** The names that reference.json uses. */
const schemeNames: Readonly<Record<string, SchemeKey>> = {
  nvfp4: 'nvfp4.w4a4',
  nvfp4_a16: 'nvfp4.w4a16',
  fp8: 'fp8.tensor.static',
  fp8_chan: 'fp8.channel',
  fp8_block: 'fp8.block128',
};

/** Scheme of every module: of each expert projection by its own name, of linears by their modules'. */
function schemesByModule(checkpoint: Checkpoint, { groups, linears }: ModelDescription): Map<string, SchemeKey> {
  const schemes = new Map<string, SchemeKey>();
  for (const { scheme, modules } of linears) for (const { name } of modules) schemes.set(name, scheme);
  for (const { name, experts, schemes: own } of groups) {
    const base = name.replace(/#.*/, '');
    const storage = findExpertStorage(checkpoint, base, false);
    const names = storage.type === 'per-expert' ? storage.projections : { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' };
    for (const expert of experts) {
      schemes.set(`${base}.${String(expert)}.${names.gate}`, own.w13);
      schemes.set(`${base}.${String(expert)}.${names.up}`, own.w13);
      schemes.set(`${base}.${String(expert)}.${names.down}`, own.w2);
    }
  }
  return schemes;
}

/** Scheme that reference.json gives a module: by its own name, by `….experts.*`, or bf16 because it is not listed. */
function expectedScheme({ family, schemes }: Reference, module: string): SchemeKey {
  const listed = schemes[module] ?? schemes[module.replace(/\.experts\..*/, '.experts.*')];
  if (listed !== undefined) return schemeNames[listed]!;
  return family === 'gpt_oss' && module.includes('.experts.') ? 'mxfp4.w4a16' : 'bf16';
}

function sha256(values: Float32Array): string {
  return createHash('sha256')
    .update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength))
    .digest('hex');
}

/** gate and up rows in turns, as gpt-oss files have them. */
function interleave(gate: Float32Array, up: Float32Array, columns: number): Float32Array {
  const out = new Float32Array(2 * gate.length);
  for (let row = 0; row < gate.length / columns; row++) {
    out.set(gate.subarray(row * columns, (row + 1) * columns), 2 * row * columns);
    out.set(up.subarray(row * columns, (row + 1) * columns), (2 * row + 1) * columns);
  }
  return out;
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** All tensors of a folder by the kit's reader. */
function plainTensors(folder: string): Map<string, ReferenceTensor> {
  const files = readdirSync(folder).filter((name) => /^model.*\.safetensors$/.test(name));
  return new Map(files.flatMap((name) => [...readSafetensors(join(folder, name))]));
}

/** Decodes every weight of the plan, under the names of dequant_sha256. */
async function decodeAll(checkpoint: Checkpoint, { groups, linears }: ModelDescription): Promise<Map<string, string>> {
  const hashes = new Map<string, string>();
  for (const linear of linears) {
    const weights = openLinearWeights(checkpoint, linear);
    for (const [index, { name }] of linear.modules.entries()) {
      hashes.set(`${name}.weight`, sha256(decodeWeights((await weights.module(index)).matrix)));
    }
  }
  for (const group of groups) {
    const base = group.name.replace(/#.*/, '');
    const isInterleaved = group.activation.type === 'swiglu';
    const storage = findExpertStorage(checkpoint, base, isInterleaved);
    const weights = openExpertWeights(checkpoint, group);
    const stacked: { gateUp: Float32Array[]; down: Float32Array[] } = { gateUp: [], down: [] };
    for (const [slot, expert] of group.experts.entries()) {
      const matrices = await weights.expert(slot);
      const [gate, up, down] = [matrices.gate, matrices.up, matrices.down].map(decodeWeights) as [Float32Array, Float32Array, Float32Array];
      if (storage.type === 'per-expert') {
        hashes.set(`${base}.${String(expert)}.${storage.projections.gate}.weight`, sha256(gate));
        hashes.set(`${base}.${String(expert)}.${storage.projections.up}.weight`, sha256(up));
        hashes.set(`${base}.${String(expert)}.${storage.projections.down}.weight`, sha256(down));
      }
      stacked.gateUp.push(isInterleaved ? interleave(gate, up, group.hiddenSize) : concat([gate, up]));
      stacked.down.push(down);
    }
    if (storage.type !== 'per-expert') {
      hashes.set(`${base}.gate_up_proj`, sha256(concat(stacked.gateUp)));
      hashes.set(`${base}.down_proj`, sha256(concat(stacked.down)));
    }
  }
  return hashes;
}

describe('describeModel and the weight readers', () => {
  for (const folder of fixtureFolders()) {
    describe(basename(folder), () => {
      const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as Reference;
      let checkpoint: Checkpoint;
      let model: ModelDescription;

      before(async () => {
        checkpoint = await Checkpoint.open(folder);
        model = describeModel(checkpoint);
      });
      after(() => checkpoint.close());

      it('gives every module the scheme of the reference', () => {
        const found = schemesByModule(checkpoint, model);
        for (const [module, scheme] of found) expect(scheme, module).to.equal(expectedScheme(reference, module));
        for (const module of Object.keys(reference.schemes)) {
          const covered = [...found.keys()].some(
            (name) => name === module || (module.endsWith('.*') && name.startsWith(module.slice(0, -1))),
          );
          expect(covered, module).to.equal(true);
        }
        expect(model.draftProblem).to.equal(undefined);
      });

      it('decodes every weight bit for bit', async () => {
        const hashes = await decodeAll(checkpoint, model);
        const plain = plainTensors(folder);
        for (const [name, hash] of hashes) {
          const tensor = plain.get(name);
          expect(hash, name).to.equal(reference.dequant_sha256[name] ?? (tensor && sha256(valuesOf(tensor) as Float32Array)));
        }
        const unread = Object.keys(reference.dequant_sha256).filter((name) => !hashes.has(name));
        expect(unread, 'weights of the reference that the plan does not cover').to.deep.equal([]);
      });
    });
  }
});
