import { expect } from 'chai';
import { answerWith, finish, parseEvents, post, startScriptedServer, token } from '../scripted-server.js';
import type { TestServer } from '../scripted-server.js';

interface Choice {
  index: number;
  text: string;
  finish_reason: string | null;
  token_ids?: number[];
  prompt_token_ids?: number[];
  logprobs: { tokens: string[]; token_logprobs: (number | null)[]; text_offset: number[]; top_logprobs: (object | null)[] } | null;
  prompt_logprobs?: (Record<string, { logprob: number; rank: number; decoded_token: string }> | null)[];
}

interface Answer {
  choices: Choice[];
  usage: { prompt_tokens: number; completion_tokens: number };
}

describe('POST /v1/completions', () => {
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer();
  });
  beforeEach(() => {
    server.engine.script = (request) => answerWith(request, 'ok');
  });
  after(() => server.close());

  const complete = async (body: object): Promise<Answer> => (await post(`${server.url}/v1/completions`, body)).json() as Promise<Answer>;

  const shapes: readonly [name: string, prompt: unknown, expected: number[][]][] = [
    ['text', 'ab', [[97, 98]]],
    ['a list of texts', ['ab', 'c'], [[97, 98], [99]]],
    ['token ids', [1, 2, 3], [[1, 2, 3]]],
    ['lists of token ids', [[1], [2, 3]], [[1], [2, 3]]],
    ['a mixed list', ['a', [2]], [[97], [2]]],
  ];
  for (const [name, prompt, expected] of shapes) {
    it(`takes ${name} as prompt`, async () => {
      const numBefore = server.engine.requests.length;
      const answer = await complete({ prompt });
      expect(server.engine.requests.slice(numBefore).map(({ promptTokenIds }) => promptTokenIds)).to.deep.equal(expected);
      expect(answer.choices.map(({ index, text }) => [index, text])).to.deep.equal(expected.map((_, index) => [index, 'ok']));
    });
  }

  it('orders choices by prompt, then by sequence, and counts each prompt once', async () => {
    const answer = await complete({ prompt: ['ab', 'c'], n: 2, return_token_ids: true });
    expect(answer.choices.map(({ prompt_token_ids: ids }) => ids)).to.deep.equal([[97, 98], [97, 98], [99], [99]]);
    expect(answer.usage).to.deep.include({ prompt_tokens: 3, completion_tokens: 12 });
  });

  it('generates 16 tokens when no limit is given', async () => {
    await complete({ prompt: 'a' });
    expect(server.engine.requests.at(-1)?.sampling.maxTokens).to.equal(16);
  });

  it('echoes the prompt, also the text of token ids', async () => {
    const answer = await complete({ prompt: ['ab', [99]], echo: true });
    expect(answer.choices.map(({ text }) => text)).to.deep.equal(['abok', 'cok']);
  });

  it('scores a prompt with echo, logprobs and max_tokens 0', async () => {
    server.engine.script = (request) => [
      [
        {
          type: 'prompt',
          requestId: request.id,
          tokens: [undefined, { tokenId: 98, logprob: -2, rank: 3, topLogprobs: [{ tokenId: 99, logprob: -1 }] }],
        },
        finish(request, 'length'),
      ],
    ];
    const answer = await complete({ prompt: 'ab', echo: true, logprobs: 1, max_tokens: 0, prompt_logprobs: 1 });
    expect(server.engine.requests.at(-1)?.sampling).to.deep.include({ maxTokens: 0, promptLogprobs: 1 });
    expect(answer.choices[0]).to.deep.include({ text: 'ab', finish_reason: 'length' });
    expect(answer.choices[0]?.logprobs).to.deep.equal({
      tokens: ['a', 'b'],
      token_logprobs: [null, -2],
      text_offset: [0, 1],
      top_logprobs: [null, { c: -1, b: -2 }],
    });
    expect(answer.choices[0]?.prompt_logprobs).to.deep.equal([
      null,
      { '98': { logprob: -2, rank: 3, decoded_token: 'b' }, '99': { logprob: -1, rank: 1, decoded_token: 'c' } },
    ]);
  });

  it('streams choices of several prompts with echo, offsets and token ids', async () => {
    const body = { prompt: ['ab', 'c'], stream: true, echo: true, logprobs: 0, return_token_ids: true };
    const events = parseEvents(await (await post(`${server.url}/v1/completions`, body)).text());
    const choices = (events.slice(0, -1) as Answer[]).flatMap((chunk) => chunk.choices);
    const ofFirst = choices.filter(({ index }) => index === 0);
    expect(ofFirst.map(({ text }) => text).join('')).to.equal('abok');
    expect(ofFirst[0]?.logprobs?.text_offset).to.deep.equal([0, 1, 2]);
    expect(ofFirst[1]?.logprobs?.text_offset).to.deep.equal([3]);
    expect(ofFirst.flatMap((choice) => choice.token_ids ?? [])).to.deep.equal([111, 107, 0]);
    expect(ofFirst[0]?.prompt_token_ids).to.deep.equal([97, 98]);
    expect(choices.filter(({ index, finish_reason: reason }) => index === 1 && reason === 'stop')).to.have.length(1);
  });

  it('sends −9999 for a log-probability of minus infinity, which JSON has not', async () => {
    server.engine.script = (request) => [
      [token(request.id, 65, { logprob: -Infinity, rank: 256, topLogprobs: [] }), finish(request, 'length', 1)],
    ];
    const answer = await complete({ prompt: 'a', logprobs: 0, max_tokens: 1 });
    expect(answer.choices[0]?.logprobs?.token_logprobs).to.deep.equal([-9999]);
  });

  it('aborts the other sequences when one fails', async () => {
    server.engine.script = (request) =>
      request.promptTokenIds[0] === 97
        ? 'hold'
        : [[{ type: 'error', requestId: request.id, error: { code: 'MOE_DEVICE_KERNEL', message: 'kernel cpu/x failed', details: {} } }]];
    const response = await post(`${server.url}/v1/completions`, { prompt: ['a', 'b'] });
    expect(response.status).to.equal(500);
    expect(await response.json()).to.have.nested.property('error.message', 'kernel cpu/x failed');
    expect(server.admission.numAdmitted).to.equal(0);
  });
});
