import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { fixtureFolder, pocketDictionary } from '@moe-server/test-kit';
import { moeServer, nativeProblem, post, startServer } from './server-process.js';
import type { RunningServer } from './server-process.js';

const shard = 'model-00002-of-00003.safetensors';
const index = 'model.safetensors.index.json';

/** Rewrites a JSON file of a model folder. */
function edit(folder: string, file: string, change: (content: Record<string, unknown>) => void): void {
  const content = JSON.parse(readFileSync(join(folder, file), 'utf8')) as Record<string, unknown>;
  change(content);
  writeFileSync(join(folder, file), JSON.stringify(content));
}

/** Changes the header of a safetensors file; it stays as long as it was. */
function editHeader(folder: string, file: string, change: (header: string) => string): void {
  const path = join(folder, file);
  const bytes = readFileSync(path);
  const length = Number(bytes.readBigUInt64LE(0));
  const changed = change(bytes.toString('utf8', 8, 8 + length));
  bytes.write(changed.padEnd(length).slice(0, length), 8);
  writeFileSync(path, bytes);
}

describe('bad input', function () {
  this.timeout(120_000);
  let problem: string | undefined;
  before(async () => {
    problem = await nativeProblem();
  });

  describe('a model folder', () => {
    let folder: string;
    beforeEach(function () {
      const source = fixtureFolder('mixtral-bf16');
      if (source === undefined || problem !== undefined) {
        console.warn(`      skipped: ${problem ?? 'the fixture mixtral-bf16 is not at hand'}`);
        this.skip();
      }
      folder = mkdtempSync(join(tmpdir(), 'moe-bad-model-'));
      cpSync(source, folder, { recursive: true });
    });
    afterEach(() => {
      rmSync(folder, { recursive: true, force: true });
    });

    const cases: readonly [name: string, damage: (folder: string) => void, message: RegExp, status?: number][] = [
      [
        'a truncated shard',
        (model) => {
          truncateSync(join(model, shard), 100_000);
        },
        /model-00002-of-00003\.safetensors/,
      ],
      [
        'a missing shard',
        (model) => {
          rmSync(join(model, shard));
        },
        /model-00002-of-00003\.safetensors/,
      ],
      [
        'a header that lies about offsets',
        (model) => {
          editHeader(model, shard, (header) => header.replace(/"data_offsets":\s*\[(\d+),\s*(\d)/, '"data_offsets":[$1,9'));
        },
        /model-00002-of-00003\.safetensors/,
      ],
      [
        'a shard outside the folder',
        (model) => {
          edit(model, index, (content) => {
            const map = content.weight_map as Record<string, string>;
            for (const name of Object.keys(map)) map[name] = '../../etc/passwd';
          });
        },
        /\.\.\/\.\.\/etc\/passwd/,
      ],
      [
        'a config.json that is no JSON',
        (model) => {
          writeFileSync(join(model, 'config.json'), '{"architectures": [');
        },
        /config\.json/,
      ],
      [
        'a missing tokenizer',
        (model) => {
          rmSync(join(model, 'tokenizer.json'));
        },
        /tokenizer\.json does not exist/,
      ],
      [
        'an absurd size',
        (model) => {
          edit(model, 'config.json', (content) => (content.hidden_size = 1e9));
        },
        /hidden_size|shape/,
      ],
      [
        'an unknown quantization',
        (model) => {
          edit(model, 'config.json', (content) => (content.quantization_config = { quant_method: 'magic' }));
        },
        /magic/i,
        2,
      ],
    ];
    for (const [name, damage, message, status = 3] of cases) {
      it(`with ${name} ends the start with status ${String(status)} and one clear sentence`, async () => {
        damage(folder);
        const result = await moeServer('start', '--port', '0', '--model', folder);
        expect(result.err).to.match(message);
        expect(result.err).to.match(/^error: [^\n]+\n$/);
        expect(result.err).not.to.contain('    at ');
        expect(result.status).to.equal(status);
      });
    }
  });

  it('an empty folder is refused in one sentence', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'moe-empty-'));
    const { status, err } = await moeServer('start', '--port', '0', '--model', folder);
    rmSync(folder, { recursive: true });
    expect(status).to.equal(3);
    expect(err).to.match(/^error: [^\n]*has no config\.json[^\n]*\n$/);
  });

  describe('a request', () => {
    let server: RunningServer;
    before(async function () {
      if (problem !== undefined) {
        console.warn(`      skipped: ${problem}`);
        this.skip();
      }
      server = await startServer('--model', pocketDictionary, '--max-model-len', '512', '--max-body', '1MiB');
    });
    after(async () => {
      // Undefined when the tests were skipped.
      await (server as RunningServer | undefined)?.stop();
    });

    const cases: readonly [name: string, path: string, body: string | object, status: number, message: RegExp][] = [
      ['malformed', 'completions', '{"prompt": ', 400, /JSON/],
      ['too large', 'completions', { prompt: 'a'.repeat(2 ** 21) }, 413, /--max-body/],
      ['too deep', 'completions', `{"prompt": ${'['.repeat(100_000)}${']'.repeat(100_000)}}`, 400, /nests/],
      ['of the wrong type', 'completions', { prompt: 'a', max_tokens: 'many' }, 400, /max_tokens.*expected number/],
      ['longer than the context', 'completions', { prompt: 'word '.repeat(600) }, 400, /512/],
      ['asking for more than the context', 'completions', { prompt: 'a', max_tokens: 600 }, 400, /max_tokens.*512/],
      ['outside the vocabulary', 'completions', { prompt: [8192] }, 400, /8191/],
      ['masking every token but none', 'completions', { prompt: 'a', logit_bias: { '99999999': -100 } }, 400, /logit_bias/],
      ['with tools', 'chat/completions', { messages: [{ role: 'user', content: 'a' }], tools: [{}] }, 400, /tools is not supported/],
      ['with lone surrogates', 'completions', '{"prompt": "\\ud800 and \\udfff", "max_tokens": 1}', 200, /text_completion/],
      ['with control characters', 'completions', { prompt: '\u0000\u001b[31m\u202e', max_tokens: 1 }, 200, /text_completion/],
    ];
    for (const [name, path, body, status, message] of cases) {
      it(`${name} is answered with ${String(status)}, and the next one is served`, async () => {
        const url = `${server.url}/v1/${path}`;
        const init = { method: 'POST', headers: { 'content-type': 'application/json' } };
        const response = await fetch(url, { ...init, body: typeof body === 'string' ? body : JSON.stringify(body) });
        const text = await response.text();
        expect(response.status, text).to.equal(status);
        expect(text).to.match(message);
        const next = await post(`${server.url}/v1/completions`, { prompt: 'a', max_tokens: 1 });
        expect(next.status).to.equal(200);
        await next.text();
      });
    }
  });
});
