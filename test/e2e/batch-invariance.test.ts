import { fixtureFolders } from '@moe-server/test-kit';
import { supportedArchitectures } from '@moe-server/engine';
import { expect } from 'chai';
import { Fixture } from './fixture.js';
import { RunningModel, greedy } from './running-model.js';

const supported = fixtureFolders()
  .map((folder) => new Fixture(folder))
  .filter(({ architecture }) => supportedArchitectures.some((name) => name === architecture));

describe('batch invariance of the cpu device', function () {
  this.timeout(120_000);
  for (const fixture of supported) {
    for (const numerics of ['wider', 'same'] as const) {
      describe(`${fixture.name}, ${numerics}`, () => {
        const prompt = fixture.prompt('p130');
        const wanted = [40, 77, prompt.length - 1];
        const rows = wanted.map((tokenIndex) => ({ ...greedy, tokenIndex }));
        let model: RunningModel;
        /** Of the request alone, in one step. */
        let alone: readonly Float32Array[];

        before(async () => {
          model = await RunningModel.open(fixture.folder, { device: 'cpu', numerics });
          alone = await model.prefill(prompt, wanted);
        });

        after(() => {
          model.close();
        });

        beforeEach(() => {
          model.reset();
        });

        it('gives the same bits beside other requests', async () => {
          const others = ['p7', 'p33', 'p1'].map((id) => ({
            tokenIds: fixture.prompt(id),
            startPosition: 0,
            blockTable: model.newSequence(40),
            rows: [{ ...greedy, tokenIndex: fixture.prompt(id).length - 1 }],
          }));
          const own = { tokenIds: prompt, startPosition: 0, blockTable: model.newSequence(prompt.length), rows };
          const [first, ...rest] = others;
          const { logits } = await model.step(...(first === undefined ? [] : [first]), own, ...rest);
          expectSameBits(logits.slice(1, 1 + wanted.length), alone);
        });

        for (const chunk of [1, 7, 16, 50]) {
          it(`gives the same bits in chunks of ${String(chunk)}`, async () => {
            expectSameBits(await inChunks(model, prompt, 0, chunk, model.newSequence(prompt.length), wanted), alone);
          });
        }

        it('gives the same bits on blocks that another request filled', async () => {
          const first = model.newSequence(prompt.length);
          await inChunks(model, prompt, 0, 64, first, []);
          const second = model.newSequence(prompt.length, first.slice(0, 2));
          expectSameBits(await inChunks(model, prompt, 32, 64, second, wanted), alone);
        });

        it('decodes beside others as it decodes alone', async () => {
          const own = model.newSequence(64);
          const other = model.newSequence(64);
          const short = fixture.prompt('p33');
          const long = fixture.prompt('p7');
          const decoded = await decodeBeside(model, short, own, undefined);
          const beside = await decodeBeside(model, short, own, { tokenIds: long, blockTable: other });
          expectSameBits(beside, decoded);
        });
      });
    }
  }
});

/** Runs tokens from `start` on, `size` at a time; returns the logits at the wanted positions. */
async function inChunks(
  model: RunningModel,
  prompt: readonly number[],
  start: number,
  size: number,
  blockTable: readonly number[],
  wanted: readonly number[],
): Promise<Float32Array[]> {
  const found: Float32Array[] = [];
  for (let startPosition = start; startPosition < prompt.length; startPosition += size) {
    const tokenIds = prompt.slice(startPosition, startPosition + size);
    const rows = wanted
      .filter((p) => p >= startPosition && p < startPosition + size)
      .map((p) => ({ ...greedy, tokenIndex: p - startPosition }));
    found.push(...(await model.step({ tokenIds, startPosition, blockTable, rows })).logits);
  }
  return found;
}

/** Logits of eight greedy steps, with or without another request in every step. */
async function decodeBeside(
  model: RunningModel,
  prompt: readonly number[],
  blockTable: readonly number[],
  other: { readonly tokenIds: readonly number[]; readonly blockTable: readonly number[] } | undefined,
): Promise<Float32Array[]> {
  const found: Float32Array[] = [];
  let tokenIds = prompt;
  let startPosition = 0;
  for (let step = 0; step < 8; step++) {
    const own = { tokenIds, startPosition, blockTable, rows: [{ ...greedy, tokenIndex: tokenIds.length - 1 }] };
    const beside = other && { ...other, startPosition: 0, rows: [{ ...greedy, tokenIndex: step % other.tokenIds.length }] };
    const { logits, rows } = await model.step(...(beside === undefined ? [own] : [beside, own]));
    found.push(logits.at(-1)!);
    startPosition += tokenIds.length;
    tokenIds = [rows.at(-1)?.[0]?.tokenId ?? -1];
  }
  return found;
}

function expectSameBits(actual: readonly Float32Array[], expected: readonly Float32Array[]): void {
  expect(actual).to.have.lengthOf(expected.length);
  for (const [i, row] of actual.entries()) {
    expect(Buffer.from(row.buffer).equals(Buffer.from(expected[i]?.buffer ?? new ArrayBuffer(0))), `row ${String(i)}`).to.equal(true);
  }
}
