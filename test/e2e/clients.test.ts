import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';
import { expect } from 'chai';
import OpenAI from 'openai';
import { nativeProblem, startServer } from './server-process.js';
import type { RunningServer } from './server-process.js';

const model = 'pocket-dictionary';
const key = 'sk-e2e';
const question = 'What is a lighthouse?';

describe('official clients', function () {
  this.timeout(120_000);
  let server: RunningServer;

  before(async function () {
    const problem = await nativeProblem();
    if (problem !== undefined) {
      console.warn(`      skipped: ${problem}`);
      this.skip();
    }
    server = await startServer('--api-key', key);
  });
  after(async () => {
    // Undefined when the tests were skipped.
    await (server as RunningServer | undefined)?.stop();
  });

  describe('openai', () => {
    const client = (): OpenAI => new OpenAI({ baseURL: `${server.url}/v1`, apiKey: key, maxRetries: 0 });
    const messages = [{ role: 'user' as const, content: question }];

    it('lists and retrieves the model', async () => {
      const list = await client().models.list();
      expect(list.data.map(({ id }) => id)).to.deep.equal([model]);
      expect((await client().models.retrieve(model)).id).to.equal(model);
    });

    it('chats', async () => {
      const { data, request_id: requestId } = await client().chat.completions.create({ model, messages }).withResponse();
      expect(data.choices[0]?.message.content).to.match(/tower with a light/);
      expect(data.usage?.total_tokens).to.be.greaterThan(20);
      expect(requestId).to.match(/^req-/);
    });

    it('streams chat with usage and log-probabilities', async () => {
      const stream = await client().chat.completions.create({
        model,
        messages,
        stream: true,
        stream_options: { include_usage: true },
        logprobs: true,
        top_logprobs: 2,
      });
      let text = '';
      let numLogprobs = 0;
      let finishReason: string | null = null;
      let completionTokens = 0;
      for await (const chunk of stream) {
        text += chunk.choices[0]?.delta.content ?? '';
        numLogprobs += chunk.choices[0]?.logprobs?.content?.length ?? 0;
        finishReason ??= chunk.choices[0]?.finish_reason ?? null;
        completionTokens += chunk.usage?.completion_tokens ?? 0;
      }
      expect(text).to.match(/tower with a light/);
      expect(finishReason).to.equal('stop');
      expect(numLogprobs).to.equal(completionTokens);
    });

    it('gathers a stream with its own helper', async () => {
      const runner = client().chat.completions.stream({ model, messages });
      expect(await runner.finalContent()).to.match(/tower with a light/);
    });

    it('completes token ids', async () => {
      const completion = await client().completions.create({ model, prompt: [65, 66, 67], max_tokens: 4 });
      expect(completion.usage?.prompt_tokens).to.equal(3);
    });

    it('aborts in the middle', async () => {
      const stream = await client().completions.create({ model, prompt: 'The', max_tokens: 1900, stream: true });
      for await (const chunk of stream) {
        expect(chunk.object).to.equal('text_completion');
        break;
      }
      expect((await client().chat.completions.create({ model, messages })).choices).to.have.length(1);
    });

    it('gets errors as its own classes, with the fields', async () => {
      const wrongKey = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'wrong', maxRetries: 0 });
      expect(await rejectionOf(wrongKey.models.list())).to.be.instanceOf(OpenAI.AuthenticationError);
      const unknown = await rejectionOf(client().chat.completions.create({ model: 'gpt-x', messages }));
      expect(unknown).to.be.instanceOf(OpenAI.NotFoundError).with.property('code', 'model_not_found');
      const invalid = await rejectionOf(client().chat.completions.create({ model, messages, temperature: 9 }));
      expect(invalid).to.be.instanceOf(OpenAI.BadRequestError).with.property('param', 'temperature');
      const tooLong = await rejectionOf(client().completions.create({ model, prompt: 'word '.repeat(5000) }));
      expect(tooLong).to.have.property('code', 'context_length_exceeded');
    });
  });

  describe('the Vercel AI SDK', () => {
    const languageModel = (): ReturnType<ReturnType<typeof createOpenAICompatible>> =>
      createOpenAICompatible({ name: 'moe', baseURL: `${server.url}/v1`, apiKey: key, includeUsage: true })(model);

    it('generates text', async () => {
      const { text, finishReason, usage } = await generateText({ model: languageModel(), prompt: question });
      expect(text).to.match(/tower with a light/);
      expect(finishReason).to.equal('stop');
      expect(usage.outputTokens).to.be.greaterThan(5);
    });

    it('streams text', async () => {
      const result = streamText({ model: languageModel(), prompt: question });
      let text = '';
      let numPieces = 0;
      for await (const piece of result.textStream) {
        text += piece;
        numPieces++;
      }
      expect(text).to.match(/tower with a light/);
      expect(numPieces).to.be.greaterThan(5);
      expect(await result.finishReason).to.equal('stop');
      expect((await result.usage).inputTokens).to.be.greaterThan(5);
    });
  });
});

async function rejectionOf(promise: PromiseLike<unknown>): Promise<unknown> {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('expected a rejection');
}
