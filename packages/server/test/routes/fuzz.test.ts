import { expect } from 'chai';
import fc from 'fast-check';
import { post, startScriptedServer } from '../scripted-server.js';
import type { TestServer } from '../scripted-server.js';

const values = fc.oneof(
  fc.jsonValue({ maxDepth: 3 }),
  fc.integer({ min: -3, max: 300 }),
  fc.double(),
  fc.constantFrom(2 ** 31, 2 ** 53, 1e308, -0, ''),
);

/** Fields of both endpoints, with anything at all in them. */
const fields = fc.dictionary(
  fc.constantFrom(
    ...['n', 'temperature', 'top_p', 'top_k', 'min_p', 'seed', 'stop', 'stop_token_ids', 'logit_bias', 'logprobs', 'top_logprobs'],
    ...['max_tokens', 'max_completion_tokens', 'min_tokens', 'echo', 'stream_options', 'prompt_logprobs', 'return_token_ids', 'model'],
    ...['tools', 'response_format', 'suffix', 'chat_template_kwargs', 'continue_final_message', 'user', '__proto__', 'constructor'],
  ),
  values,
  { maxKeys: 4 },
);

const messages = fc.oneof(
  values,
  fc.array(fc.record({ role: fc.oneof(fc.constantFrom('user', 'system', 'assistant', 'tool'), values), content: values }), {
    maxLength: 3,
  }),
);

describe('any body at all', function () {
  this.timeout(20_000);
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer();
  });
  after(() => server.close());

  const check = async (path: string, body: object): Promise<void> => {
    const response = await post(server.url + path, body);
    const text = await response.text();
    expect(response.status, text).to.be.oneOf([200, 400, 404]);
    const answer = JSON.parse(text) as { error?: { message: unknown } };
    if (response.status !== 200) expect(answer.error?.message).to.be.a('string');
    expect(server.admission.numAdmitted).to.equal(0);
  };

  it('gets an answer or an error envelope from /v1/completions, never a fault', async () => {
    const bodies = fc.tuple(fc.oneof(fc.constant('a'), values), fields);
    await fc.assert(
      fc.asyncProperty(bodies, ([prompt, rest]) => check('/v1/completions', { prompt, ...rest })),
      { numRuns: 300, seed: 20_261_126 },
    );
  });

  it('gets an answer or an error envelope from /v1/chat/completions, never a fault', async () => {
    const bodies = fc.tuple(fc.oneof(fc.constant([{ role: 'user', content: 'a' }]), messages), fields);
    await fc.assert(
      fc.asyncProperty(bodies, ([given, rest]) => check('/v1/chat/completions', { messages: given, ...rest })),
      { numRuns: 300, seed: 20_261_126 },
    );
  });
});
