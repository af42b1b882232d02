import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { nativeProblem, post, startServer } from './server-process.js';

describe('--packed-weights-cache', function () {
  this.timeout(60_000);
  let folder: string;
  before(async function () {
    if ((await nativeProblem()) !== undefined) this.skip();
  });
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'moe-cache-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true });
  });

  async function answerOf(...flags: string[]): Promise<{ readonly text: string; readonly output: string }> {
    const server = await startServer('--cache-dir', folder, ...flags);
    const messages = [{ role: 'user', content: 'What does serendipity mean?' }];
    const text = await (await post(`${server.url}/v1/chat/completions`, { messages, temperature: 0, logprobs: true })).text();
    await server.stop();
    const { choices } = JSON.parse(text) as { readonly choices: unknown };
    return { text: JSON.stringify(choices), output: server.output() };
  }

  it('writes on the first start, reads on the next, and answers to the last bit as without it', async () => {
    const without = await answerOf();
    expect(readdirSync(folder)).not.to.include('packed-weights');
    const flags = ['--packed-weights-cache', '--log-level', 'debug'];
    const [first, second] = [await answerOf(...flags), await answerOf(...flags)];
    expect(first.output).to.match(/packed weights: 0 layers read, \d\d written/);
    expect(second.output).to.match(/packed weights: \d\d layers read, 0 written/);
    expect([first.text, second.text]).to.deep.equal([without.text, without.text]);
    expect(readdirSync(join(folder, 'packed-weights'))[0]).to.match(/^pocket-dictionary-[0-9a-f]{12}$/);
  });
});
