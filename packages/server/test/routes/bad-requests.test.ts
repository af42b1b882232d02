import { connect } from 'node:net';
import { expect } from 'chai';
import { post, startScriptedServer } from '../scripted-server.js';
import type { TestServer } from '../scripted-server.js';

interface Envelope {
  error: { message: string; type: string; param: string | null; code: string | null };
}

const messages = [{ role: 'user', content: 'hi' }];
const deep = (levels: number): string => '['.repeat(levels) + ']'.repeat(levels);

describe('bad requests', () => {
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer();
  });
  after(() => server.close());
  afterEach('the next request is served', async () => {
    const response = await post(`${server.url}/v1/chat/completions`, { messages });
    expect(response.status).to.equal(200);
    await response.json();
  });

  const cases: readonly [
    name: string,
    path: 'chat/completions' | 'completions',
    body: unknown,
    status: number,
    message: RegExp,
    param?: string,
  ][] = [
    ['malformed JSON', 'completions', '{"prompt": "a",}', 400, /not valid JSON/],
    ['a truncated body', 'completions', '{"prompt": "a', 400, /ends too early/],
    ['an empty body', 'completions', '', 400, /empty/],
    ['a top-level array', 'completions', '[]', 400, /must be a JSON object, got an array/],
    ['a top-level null', 'completions', 'null', 400, /got null/],
    ['a body that is too large', 'completions', { prompt: 'a'.repeat(140_000) }, 413, /131072 bytes/],
    ['200 levels of nesting', 'completions', `{"metadata": ${deep(200)}}`, 400, /nests/],
    ['1025 prompts', 'completions', { prompt: Array(1025).fill('a') }, 400, /^prompt: .*at most 1024/, 'prompt'],
    ['more than 2048 sequences', 'completions', { prompt: Array(17).fill('a'), n: 128 }, 400, /^n: .*17 prompts.*at most 2048/, 'n'],
    ['temperature −1', 'completions', { prompt: 'a', temperature: -1 }, 400, /^temperature: .*>=0/, 'temperature'],
    ['temperature 3', 'completions', { prompt: 'a', temperature: 3 }, 400, /^temperature: .*<=2/, 'temperature'],
    [
      'repetition_penalty 1e-46',
      'completions',
      { prompt: 'a', repetition_penalty: 1e-46 },
      400,
      /^repetition_penalty: .*>=0.01/,
      'repetition_penalty',
    ],
    ['temperature 1e999', 'completions', '{"prompt": "a", "temperature": 1e999}', 400, /^temperature: /, 'temperature'],
    ['top_p 0', 'completions', { prompt: 'a', top_p: 0 }, 400, /^top_p: /, 'top_p'],
    ['top_p 1.1', 'completions', { prompt: 'a', top_p: 1.1 }, 400, /^top_p: /, 'top_p'],
    ['top_k −2', 'completions', { prompt: 'a', top_k: -2 }, 400, /^top_k: /, 'top_k'],
    ['min_p 2', 'completions', { prompt: 'a', min_p: 2 }, 400, /^min_p: /, 'min_p'],
    ['a penalty of 1e9', 'completions', { prompt: 'a', presence_penalty: 1e9 }, 400, /^presence_penalty: /, 'presence_penalty'],
    ['max_tokens 0 without echo', 'completions', { prompt: 'a', max_tokens: 0 }, 400, /echo/, 'max_tokens'],
    ['max_tokens −1', 'completions', { prompt: 'a', max_tokens: -1 }, 400, /^max_tokens: /, 'max_tokens'],
    ['max_tokens 1e12', 'completions', { prompt: 'a', max_tokens: 1e12 }, 400, /at most 199 can be generated/, 'max_tokens'],
    ['max_tokens as a string', 'completions', { prompt: 'a', max_tokens: '5' }, 400, /expected number, received string/, 'max_tokens'],
    ['min_tokens over max_tokens', 'completions', { prompt: 'a', max_tokens: 2, min_tokens: 3 }, 400, /^min_tokens /, 'min_tokens'],
    ['n 0', 'completions', { prompt: 'a', n: 0 }, 400, /^n: /, 'n'],
    ['n true', 'completions', { prompt: 'a', n: true }, 400, /^n: .*received boolean/, 'n'],
    ['n 1e9', 'completions', { prompt: 'a', n: 1e9 }, 400, /^n: /, 'n'],
    ['logprobs 21', 'completions', { prompt: 'a', logprobs: 21 }, 400, /^logprobs: /, 'logprobs'],
    ['seed 2^63−1', 'completions', '{"prompt": "a", "seed": 9223372036854775807}', 400, /^seed: /, 'seed'],
    ['seed 1.5', 'completions', { prompt: 'a', seed: 1.5 }, 400, /^seed: /, 'seed'],
    ['five stop strings', 'completions', { prompt: 'a', stop: ['a', 'b', 'c', 'd', 'e'] }, 400, /at most 4 strings/, 'stop'],
    ['an empty stop string', 'completions', { prompt: 'a', stop: '' }, 400, /^stop: /, 'stop'],
    ['a stop string of 2000 characters', 'completions', { prompt: 'a', stop: 'x'.repeat(2000) }, 400, /^stop: /, 'stop'],
    ['stop as an object', 'completions', { prompt: 'a', stop: {} }, 400, /^stop: /, 'stop'],
    ['a stop token outside the vocabulary', 'completions', { prompt: 'a', stop_token_ids: [256] }, 400, /0 to 255/, 'stop_token_ids'],
    ['a bias on a token that is none', 'completions', { prompt: 'a', logit_bias: { x: 1 } }, 400, /^logit_bias/, 'logit_bias.x'],
    ['a bias outside the vocabulary', 'completions', { prompt: 'a', logit_bias: { '999': 1 } }, 400, /0 to 255/, 'logit_bias'],
    ['a bias of 1e308', 'completions', { prompt: 'a', logit_bias: { '1': 1e308 } }, 400, /^logit_bias/, 'logit_bias.1'],
    ['no prompt', 'completions', {}, 400, /^prompt: /, 'prompt'],
    ['an empty prompt', 'completions', { prompt: '' }, 400, /^prompt: /, 'prompt'],
    ['an empty list of prompts', 'completions', { prompt: [] }, 400, /^prompt: /, 'prompt'],
    ['a negative token id', 'completions', { prompt: [1, -1] }, 400, /0 to 255, got -1/, 'prompt[1]'],
    ['a token id beyond the vocabulary', 'completions', { prompt: [[1], [256]] }, 400, /got 256/, 'prompt[1][0]'],
    ['a fractional token id', 'completions', { prompt: [1.5] }, 400, /got 1.5/, 'prompt[0]'],
    ['a token id as a string', 'completions', { prompt: [[1, '1']] }, 400, /got string/, 'prompt[0][1]'],
    ['a prompt beyond the context', 'completions', { prompt: 'a'.repeat(300) }, 400, /300 tokens.* 200, prompt/],
    ['a prompt that no tokenizer could fit', 'completions', { prompt: 'a'.repeat(110_000) }, 400, /110000 characters/, 'prompt'],
    ['an unknown model', 'completions', { prompt: 'a', model: 'gpt-x' }, 404, /"gpt-x" does not exist.*"byte-model"/, 'model'],
    ['suffix', 'completions', { prompt: 'a', suffix: 'z' }, 400, /^suffix is not supported/, 'suffix'],
    ['best_of beside another n', 'completions', { prompt: 'a', best_of: 2 }, 400, /^best_of is not supported/, 'best_of'],
    ['no messages', 'chat/completions', {}, 400, /^messages: /, 'messages'],
    ['an empty list of messages', 'chat/completions', { messages: [] }, 400, /^messages: /, 'messages'],
    [
      'an unknown role',
      'chat/completions',
      { messages: [{ role: 'boss', content: 'a' }] },
      400,
      /^messages\[0\].role: /,
      'messages[0].role',
    ],
    ['a user message without content', 'chat/completions', { messages: [{ role: 'user' }] }, 400, /got nothing/, 'messages[0].content'],
    ['no content parts', 'chat/completions', { messages: [{ role: 'user', content: [] }] }, 400, /at least one/, 'messages[0].content'],
    ['messages that the template refuses', 'chat/completions', { messages: [{ role: 'user', content: 'raise' }] }, 400, /template/],
    ['tools', 'chat/completions', { messages, tools: [{ type: 'function' }] }, 400, /^tools is not supported/, 'tools'],
    [
      'a JSON schema',
      'chat/completions',
      { messages, response_format: { type: 'json_schema' } },
      400,
      /constrained|text/,
      'response_format',
    ],
    [
      'a template in the request',
      'chat/completions',
      { messages, chat_template: '{{ 1 }}' },
      400,
      /^chat_template is not/,
      'chat_template',
    ],
    ['top_logprobs without logprobs', 'chat/completions', { messages, top_logprobs: 2 }, 400, /^top_logprobs: /, 'top_logprobs'],
    ['prompt_logprobs in a stream', 'chat/completions', { messages, stream: true, prompt_logprobs: 1 }, 400, /stream/, 'prompt_logprobs'],
    [
      'an image',
      'chat/completions',
      { messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url: 'http://127.0.0.1:1/x' } }] }] },
      400,
      /"image_url" are not supported/,
      'messages[0].content[0].type',
    ],
  ];
  for (const [name, path, body, status, message, param] of cases) {
    it(`refuses ${name} with ${String(status)}`, async () => {
      const response = await post(`${server.url}/v1/${path}`, body);
      const { error } = (await response.json()) as Envelope;
      expect(response.status, error.message).to.equal(status);
      expect(error.message).to.match(message);
      expect(error.type).to.equal('invalid_request_error');
      if (param !== undefined) expect(error.param).to.equal(param);
      expect(server.admission.numAdmitted).to.equal(0);
    });
  }

  it('refuses invalid UTF-8', async () => {
    const init = { method: 'POST', headers: { 'content-type': 'application/json' } };
    const response = await fetch(`${server.url}/v1/completions`, {
      ...init,
      body: Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d]),
    });
    expect(response.status).to.equal(400);
    expect(((await response.json()) as Envelope).error.message).to.match(/UTF-8/);
  });

  it('refuses compressed bodies and other content types with 415', async () => {
    const gzip = await post(`${server.url}/v1/completions`, '{}', { 'content-encoding': 'gzip' });
    expect(gzip.status).to.equal(415);
    const text = await post(`${server.url}/v1/completions`, '{}', { 'content-type': 'text/plain' });
    expect(text.status).to.equal(415);
  });

  it('refuses an endless body at the limit and closes the connection', async () => {
    const answer = await rawRequest(server.port, (write) => {
      write('POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n');
      for (let i = 0; i < 160; i++) write(`400\r\n${'a'.repeat(1024)}\r\n`);
    });
    expect(answer).to.match(/^HTTP\/1.1 413 /);
    expect(answer).to.match(/connection: close/i);
  });

  it('gives up on a body that does not come', async () => {
    const impatient = await startScriptedServer({ bodyTimeoutMs: 20 });
    const answer = await rawRequest(impatient.port, (write) => {
      write('POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{');
    });
    expect(answer).to.match(/^HTTP\/1.1 408 /);
    await impatient.close();
  });

  it('answers headers that are too large with 431 in the envelope', async () => {
    const answer = await rawRequest(server.port, (write) => {
      write(`GET / HTTP/1.1\r\nHost: x\r\nX-Long: ${'a'.repeat(20_000)}\r\n\r\n`);
    });
    expect(answer).to.match(/^HTTP\/1.1 431 /);
    expect(answer).to.contain('"invalid_request_error"');
  });

  it('ignores unknown fields and says so at debug', async () => {
    const response = await post(`${server.url}/v1/completions`, { prompt: 'a', frobnicate: 1, user: 'me' });
    expect(response.status).to.equal(200);
    const line = server.logLines.findLast((entry) => entry.includes('unknown body fields'));
    expect(line).to.contain('"fields":["frobnicate"]');
  });

  it('leaves prototypes alone', async () => {
    const response = await post(
      `${server.url}/v1/completions`,
      '{"prompt": "a", "__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}',
    );
    expect(response.status).to.equal(200);
    expect(({} as Record<string, unknown>).polluted).to.equal(undefined);
    const template = await post(
      `${server.url}/v1/chat/completions`,
      `{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"__proto__": {"polluted": 1}}}`,
    );
    await template.json();
    expect(({} as Record<string, unknown>).polluted).to.equal(undefined);
  });

  it('takes null for left out', async () => {
    const nulls = {
      temperature: null,
      stop: null,
      logit_bias: null,
      tools: null,
      stream: null,
      n: null,
      seed: null,
      response_format: null,
    };
    const response = await post(`${server.url}/v1/chat/completions`, { messages, ...nulls });
    expect(response.status).to.equal(200);
  });
});

/** Speaks HTTP by hand and returns everything the server said until it closed the connection. */
function rawRequest(port: number, send: (write: (text: string) => void) => void): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk.toString();
    });
    // A reset after the answer is the server's right: it did not want the rest.
    socket.on('error', () => undefined);
    socket.on('close', () => {
      if (answer === '') reject(new Error('closed without an answer'));
      else resolve(answer);
    });
    send((text) => socket.write(text));
  });
}
