import { connect } from 'node:net';
import { expect } from 'chai';
import { answerWith, finish, parseEvents, post, startScriptedServer, token, until } from '../scripted-server.js';
import type { TestServer } from '../scripted-server.js';

interface Chunk {
  id: string;
  object: string;
  choices: { index: number; delta: { role?: string; content: string }; finish_reason: string | null; token_ids?: number[] }[];
  usage?: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details: { cached_tokens: number } } | null;
  prompt_token_ids?: number[];
}

interface Answer {
  choices: {
    message: { role: string; content: string };
    finish_reason: string;
    stop_reason: string | number | null;
    logprobs: { content: { token: string; bytes: number[]; logprob: number; top_logprobs: { token: string }[] }[] } | null;
    token_ids?: number[];
  }[];
  usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
  prompt_token_ids?: number[];
}

const hello = { messages: [{ role: 'user', content: 'hi' }] };

describe('POST /v1/chat/completions', () => {
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer();
  });
  beforeEach(() => {
    server.engine.script = (request) => answerWith(request, 'ok');
  });
  after(() => server.close());

  const chat = (body: object): Promise<Response> => post(`${server.url}/v1/chat/completions`, body);
  const lastRequest = (): NonNullable<ReturnType<typeof server.engine.requests.at>> => {
    const request = server.engine.requests.at(-1);
    if (request === undefined) throw new Error('no request reached the engine');
    return request;
  };

  it('answers with the text, the reason it ended and the usage', async () => {
    const answer = (await (await chat(hello)).json()) as Answer;
    expect(answer.choices[0]?.message).to.deep.equal({ role: 'assistant', content: 'ok', refusal: null });
    expect(answer.choices[0]?.finish_reason).to.equal('stop');
    const promptTokens = lastRequest().promptTokenIds.length;
    expect(answer.usage).to.deep.include({ prompt_tokens: promptTokens, completion_tokens: 3, total_tokens: promptTokens + 3 });
  });

  it('renders the conversation through the template and lets it use the rest of the context', async () => {
    await chat({ ...hello, chat_template_kwargs: { enable_thinking: false } });
    expect(Buffer.from(lastRequest().promptTokenIds).toString()).to.equal('user:hi\n{"enable_thinking":false}assistant:');
    expect(lastRequest().sampling.maxTokens).to.equal(200 - lastRequest().promptTokenIds.length);
  });

  it('joins text parts and passes every sampling field on', async () => {
    await chat({
      messages: [
        {
          role: 'user',
          content: [
            { type: 'text', text: 'a' },
            { type: 'text', text: 'b' },
          ],
        },
      ],
      max_completion_tokens: 7,
      max_tokens: 9,
      temperature: 0.5,
      top_p: 0.9,
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.1,
      presence_penalty: 1,
      frequency_penalty: -1,
      seed: 42,
      min_tokens: 2,
      ignore_eos: true,
      logit_bias: { '65': 5 },
      stop_token_ids: [10],
    });
    expect(Buffer.from(lastRequest().promptTokenIds).toString()).to.contain('user:a\nb\n');
    expect(lastRequest().sampling).to.deep.equal({
      maxTokens: 7,
      minTokens: 2,
      temperature: 0.5,
      topK: 0,
      topP: 0.9,
      minP: 0.1,
      repetitionPenalty: 1.1,
      presencePenalty: 1,
      frequencyPenalty: -1,
      logitBias: [[65, 5]],
      seed: 42,
      logprobs: undefined,
      promptLogprobs: undefined,
      stopTokenIds: [10],
      ignoreEos: true,
    });
  });

  it('runs n sequences as n requests with seeds of their own', async () => {
    const numBefore = server.engine.requests.length;
    const answer = (await (await chat({ ...hello, n: 3, seed: 5 })).json()) as Answer;
    expect(answer.choices).to.have.length(3);
    expect(server.engine.requests.slice(numBefore).map(({ sampling }) => sampling.seed)).to.deep.equal([5, 6, 7]);
    expect(answer.usage.prompt_tokens).to.equal(lastRequest().promptTokenIds.length);
    expect(answer.usage.completion_tokens).to.equal(9);
  });

  it('cuts at a stop string, says which, and aborts the sequence', async () => {
    server.engine.script = (request) => answerWith(request, 'one two three');
    const answer = (await (await chat({ ...hello, stop: [' two'] })).json()) as Answer;
    expect(answer.choices[0]).to.deep.include({ finish_reason: 'stop', stop_reason: ' two' });
    expect(answer.choices[0]?.message.content).to.equal('one');
    expect(server.engine.aborted).to.include(lastRequest().id);
  });

  it('continues the last message instead of beginning a new one', async () => {
    const messages = [...hello.messages, { role: 'assistant', content: 'The answer' }];
    await chat({ messages, continue_final_message: true });
    expect(Buffer.from(lastRequest().promptTokenIds).toString()).to.equal('user:hi\nassistant:The answer');
    expect((await chat({ ...hello, continue_final_message: true })).status).to.equal(400);
  });

  it('never sends half a character', async () => {
    server.engine.script = (request) => answerWith(request, 'é€😀');
    const events = parseEvents(await (await chat({ ...hello, stream: true })).text());
    const contents = (events.slice(0, -1) as Chunk[]).map(({ choices }) => choices[0]?.delta.content);
    expect(contents.filter((content) => content !== '')).to.deep.equal(['é', '€', '😀']);
  });

  it('includes the stop string when asked to', async () => {
    server.engine.script = (request) => answerWith(request, 'one two three');
    const answer = (await (await chat({ ...hello, stop: ' two', include_stop_str_in_output: true })).json()) as Answer;
    expect(answer.choices[0]?.message.content).to.equal('one two');
  });

  it('names the stop token id that ended the answer and leaves its text out', async () => {
    server.engine.script = (request) => [[token(request.id, 65)], [token(request.id, 66), finish(request, 'stop', 2, 66)]];
    const answer = (await (await chat({ ...hello, stop_token_ids: [66] })).json()) as Answer;
    expect(answer.choices[0]?.message.content).to.equal('A');
    expect(answer.choices[0]?.stop_reason).to.equal(66);
  });

  it('reports log-probabilities with bytes and alternatives', async () => {
    const answer = (await (await chat({ ...hello, logprobs: true, top_logprobs: 2 })).json()) as Answer;
    const first = answer.choices[0]?.logprobs?.content[0];
    expect(first).to.deep.include({ token: 'o', bytes: [111], logprob: -0.5 });
    expect(first?.top_logprobs.map(({ token: text }) => text)).to.deep.equal(['o', 'z']);
  });

  it('writes tokens as ids and returns token ids when asked to', async () => {
    const body = { ...hello, logprobs: true, return_tokens_as_token_ids: true, return_token_ids: true };
    const answer = (await (await chat(body)).json()) as Answer;
    expect(answer.choices[0]?.logprobs?.content[0]?.token).to.equal('token_id:111');
    expect(answer.choices[0]?.token_ids).to.deep.equal([111, 107, 0]);
    expect(answer.prompt_token_ids).to.deep.equal(lastRequest().promptTokenIds);
  });

  it('streams one chunk per token, the role with the first, then usage and [DONE]', async () => {
    const response = await chat({ ...hello, stream: true, stream_options: { include_usage: true } });
    expect(response.headers.get('content-type')).to.equal('text/event-stream; charset=utf-8');
    const events = parseEvents(await response.text());
    expect(events.at(-1)).to.equal('[DONE]');
    const chunks = events.slice(0, -1) as Chunk[];
    expect(chunks.map(({ choices }) => choices[0]?.delta.content)).to.deep.equal(['o', 'k', '', '', undefined]);
    expect(chunks.map(({ choices }) => choices[0]?.delta.role)).to.deep.equal(['assistant', undefined, undefined, undefined, undefined]);
    expect(chunks.map(({ choices }) => choices[0]?.finish_reason)).to.deep.equal([null, null, null, 'stop', undefined]);
    expect(chunks.at(-1)).to.deep.include({ choices: [] });
    expect(chunks.at(-1)?.usage).to.deep.include({ completion_tokens: 3, prompt_tokens_details: { cached_tokens: 1 } });
    expect(new Set(chunks.map(({ id }) => id)).size).to.equal(1);
  });

  it('counts usage in every chunk when asked to', async () => {
    const options = { include_usage: true, continuous_usage_stats: true };
    const events = parseEvents(await (await chat({ ...hello, stream: true, stream_options: options })).text());
    const counts = (events.slice(0, -1) as Chunk[]).map(({ usage }) => usage?.completion_tokens);
    expect(counts).to.deep.equal([1, 2, 3, 3, 3]);
  });

  it('streams the same text as it answers whole', async () => {
    server.engine.script = (request) => answerWith(request, 'abc stop def');
    const whole = (await (await chat({ ...hello, stop: 'op d' })).json()) as Answer;
    const events = parseEvents(await (await chat({ ...hello, stop: 'op d', stream: true })).text());
    const text = (events.slice(0, -1) as Chunk[]).map(({ choices }) => choices[0]?.delta.content ?? '').join('');
    expect(text).to.equal(whole.choices[0]?.message.content);
    expect(text).to.equal('abc st');
  });

  it('sends an error event and [DONE] when the engine fails in the middle, never a finish_reason', async () => {
    server.engine.script = (request) => [
      [token(request.id, 65)],
      [{ type: 'error', requestId: request.id, error: { code: 'MOE_DEVICE_LOST', message: 'the engine died (SIGKILL)', details: {} } }],
    ];
    const events = parseEvents(await (await chat({ ...hello, stream: true })).text());
    expect(events).to.have.length(3);
    expect(events[1]).to.have.nested.property('error.message', 'the engine died (SIGKILL)');
    expect(events[2]).to.equal('[DONE]');
  });

  it('answers with a status when the engine fails before the first token, also for a stream', async () => {
    server.engine.script = (request) => [
      [{ type: 'error', requestId: request.id, error: { code: 'MOE_DEVICE_LOST', message: 'the engine died', details: {} } }],
    ];
    const response = await chat({ ...hello, stream: true });
    expect(response.status).to.equal(503);
    expect(await response.json()).to.have.nested.property('error.message', 'the engine died');
  });

  it('keeps a silent stream alive with comments', async () => {
    const patient = await startScriptedServer({ keepAliveMs: 5 });
    patient.engine.script = () => 'hold';
    const response = await post(`${patient.url}/v1/chat/completions`, { ...hello, stream: true });
    const reader = response.body?.getReader();
    const first = await reader?.read();
    expect(Buffer.from(first?.value ?? []).toString()).to.match(/^: keep-alive\n\n/);
    await reader?.cancel();
    await patient.close();
  });

  it('ends the stream of a client that does not read', async () => {
    const bounded = await startScriptedServer({ maxBufferedBytes: 64 * 1024 });
    const numTokens = 50_000;
    bounded.engine.script = (request) => [
      ...Array.from({ length: numTokens / 100 }, () => Array.from({ length: 100 }, () => token(request.id, 65))),
      [finish(request, 'length', numTokens)],
    ];
    const socket = connect(bounded.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.pause();
    const body = JSON.stringify({ ...hello, stream: true });
    const head = `POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${String(body.length)}`;
    socket.write(`${head}\r\n\r\n${body}`);
    await until(() => bounded.engine.aborted.length === 1 && bounded.admission.numAdmitted === 0);
    expect(bounded.logLines.join('')).to.contain('"aborted":true');
    socket.destroy();
    await bounded.close();
  });

  for (const stream of [true, false]) {
    it(`aborts the sequences of a client that leaves (stream: ${String(stream)})`, async () => {
      server.engine.script = () => 'hold';
      const controller = new AbortController();
      const numBefore = server.engine.requests.length;
      const numAborted = server.engine.aborted.length;
      const answer = fetch(`${server.url}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ ...hello, stream, n: 2 }),
        signal: controller.signal,
      }).catch(() => undefined);
      await until(() => server.engine.requests.length === numBefore + 2);
      controller.abort();
      await answer;
      await until(() => server.engine.aborted.length >= numAborted + 2 && server.admission.numAdmitted === 0);
      expect(server.admission.numAdmitted).to.equal(0);
    });
  }
});
