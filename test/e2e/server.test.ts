import { existsSync } from 'node:fs';
import { expect } from 'chai';
import { fixtureFolder, pocketDictionary } from '@moe-server/test-kit';
import { events, eventually, metric, moeServer, nativeProblem, post, startServer } from './server-process.js';
import type { RunningServer } from './server-process.js';

interface Answer {
  choices: {
    text: string;
    message: { content: string };
    finish_reason: string;
    stop_reason: string | null;
    token_ids: number[];
    prompt_token_ids: number[];
    logprobs: { tokens: string[]; token_logprobs: (number | null)[]; text_offset: number[] };
  }[];
  usage: { prompt_tokens: number; completion_tokens: number; prompt_tokens_details: { cached_tokens: number } };
}

const lighthouse = [{ role: 'user', content: 'What is a lighthouse?' }];
/** Runs until it is stopped or has filled the context. */
const endless = { prompt: 'The', max_tokens: 1900, ignore_eos: true, stream: true };

describe('moe-server start', function () {
  this.timeout(120_000);
  let server: RunningServer;

  before(async function () {
    const problem = await nativeProblem();
    if (problem !== undefined) {
      console.warn(`      skipped: ${problem}`);
      this.skip();
    }
    server = await startServer();
  });
  after(async () => {
    // Undefined when the tests were skipped.
    await (server as RunningServer | undefined)?.stop();
  });

  const chat = async (body: object): Promise<Answer> =>
    (await (await post(`${server.url}/v1/chat/completions`, { messages: lighthouse, ...body })).json()) as Answer;
  const complete = async (body: object): Promise<Answer> => (await (await post(`${server.url}/v1/completions`, body)).json()) as Answer;

  it('shows what it does, the address, and a line to try', () => {
    const output = server.output();
    expect(output).to.match(/plugins +cpu /);
    expect(output).to.match(/experts +nvfp4\.w4a4 +cpu \(/);
    expect(output).to.match(/experts +fp8\.tensor\.static +cpu \(/);
    expect(output).to.match(/weights +100 % of /);
    expect(output).to.match(/KV cache/);
    expect(output).to.contain(`curl ${server.url}/v1/chat/completions`);
  });

  it('answers a question sensibly', async () => {
    const answer = await chat({});
    expect(answer.choices[0]?.message.content).to.match(/tower with a light/);
    expect(answer.choices[0]?.finish_reason).to.equal('stop');
  });

  it('streams the text that it answers whole', async () => {
    const whole = await chat({});
    let text = '';
    for await (const data of events(await post(`${server.url}/v1/chat/completions`, { messages: lighthouse, stream: true }))) {
      if (data === '[DONE]') continue;
      const chunk = JSON.parse(data) as { choices: { delta: { content: string } }[] };
      text += chunk.choices[0]?.delta.content ?? '';
    }
    expect(text).to.equal(whole.choices[0]?.message.content);
  });

  it('answers the same whatever runs beside it, and reuses a common beginning', async () => {
    const alone = await complete({ prompt: 'A lighthouse is', max_tokens: 20, temperature: 0, return_token_ids: true });
    const together = await Promise.all(
      Array.from({ length: 6 }, (_, i) =>
        complete({ prompt: i % 2 === 0 ? 'A lighthouse is' : 'The sea and', max_tokens: 20, temperature: 0, return_token_ids: true }),
      ),
    );
    for (const i of [0, 2, 4]) expect(together[i]?.choices[0]?.token_ids).to.deep.equal(alone.choices[0]?.token_ids);
    const long = [{ role: 'user', content: 'What is a lighthouse? '.repeat(20) }];
    await chat({ messages: long });
    expect((await chat({ messages: long })).usage.prompt_tokens_details.cached_tokens).to.be.greaterThan(16);
  });

  it('samples the same with the same seed, and differently with another', async () => {
    const sample = async (seed: number): Promise<string | undefined> =>
      (await complete({ prompt: 'Once upon a time', max_tokens: 24, temperature: 1, seed })).choices[0]?.text;
    const first = await sample(7);
    expect(await sample(7)).to.equal(first);
    expect(await sample(8)).not.to.equal(first);
  });

  it('stops at a stop string and names it', async () => {
    const answer = await chat({ stop: [' light'] });
    expect(answer.choices[0]).to.deep.include({ finish_reason: 'stop', stop_reason: ' light' });
    expect(answer.choices[0]?.message.content).to.match(/ with a$/);
  });

  it('scores a prompt with echo and max_tokens 0', async () => {
    const { choices } = await complete({
      prompt: 'A lighthouse is a tower',
      max_tokens: 0,
      echo: true,
      logprobs: 1,
      return_token_ids: true,
    });
    const logprobs = choices[0]?.logprobs;
    expect(logprobs?.tokens.join('')).to.equal('A lighthouse is a tower');
    expect(logprobs?.token_logprobs[0]).to.equal(null);
    expect(logprobs?.token_logprobs.slice(1).every((logprob) => logprob !== null && logprob < 0)).to.equal(true);
    expect(choices[0]?.prompt_token_ids).to.have.length(logprobs?.tokens.length ?? 0);
  });

  it('tokenizes with the chat template, and back', async () => {
    const { tokens } = (await (await post(`${server.url}/tokenize`, { messages: lighthouse })).json()) as { tokens: number[] };
    const { prompt } = (await (await post(`${server.url}/detokenize`, { tokens })).json()) as { prompt: string };
    expect(prompt).to.equal('<|im_start|>user\nWhat is a lighthouse?<|im_end|>\n<|im_start|>assistant\n');
  });

  it('reports the plan and the state of the engine', async () => {
    const plan = (await (await fetch(`${server.url}/v1/moe/plan`)).json()) as { layers: { name: string; bindings: object[] }[] };
    expect(plan.layers.every(({ bindings }) => bindings.length > 0)).to.equal(true);
    await eventually(async () => (await metric(server.url, 'moe_engine_steps_total')) > 0);
    expect(await metric(server.url, 'vllm:request_success_total', 'finished_reason="stop"')).to.be.greaterThan(0);
    expect(await metric(server.url, 'vllm:prefix_cache_hits_total')).to.be.greaterThan(0);
  });

  it('frees the place of a client that leaves, in the middle and in the queue', async () => {
    const controllers = Array.from({ length: 70 }, () => new AbortController());
    const requests = controllers.map(({ signal }) => post(`${server.url}/v1/completions`, endless, signal).catch(() => undefined));
    // More than run at once, so that some wait.
    await eventually(async () => (await metric(server.url, 'vllm:num_requests_waiting')) > 0);
    for (const controller of controllers) controller.abort();
    await Promise.all(requests);
    await eventually(async () => {
      const [running, waiting] = [
        await metric(server.url, 'vllm:num_requests_running'),
        await metric(server.url, 'vllm:num_requests_waiting'),
      ];
      return running === 0 && waiting === 0;
    });
    expect(await metric(server.url, 'vllm:request_success_total', 'finished_reason="abort"')).to.be.greaterThan(0);
    expect((await chat({})).choices[0]?.finish_reason).to.equal('stop');
  });

  it('survives the death of its engine: an error event at once, then an engine that answers again', async function () {
    if (process.platform !== 'linux') this.skip();
    const pid = server.enginePid();
    if (pid === undefined) throw new Error('the server has no engine process');
    let error: string | undefined;
    let killedAt = 0;
    let last = '';
    for await (const data of events(await post(`${server.url}/v1/completions`, endless))) {
      if (killedAt === 0) {
        killedAt = performance.now();
        process.kill(pid, 'SIGKILL');
      }
      if (data.startsWith('{"error"')) error = data;
      last = data;
    }
    expect(performance.now() - killedAt).to.be.lessThan(1000);
    expect(error).to.contain('SIGKILL');
    expect(last).to.equal('[DONE]');
    const health = await fetch(`${server.url}/health`);
    const refused = await post(`${server.url}/v1/chat/completions`, { messages: lighthouse });
    expect([health.status, refused.status]).to.deep.equal([503, 503]);
    expect(refused.headers.get('retry-after')).to.match(/^\d+$/);
    expect((await fetch(`${server.url}/live`)).status).to.equal(200);
    await eventually(async () => (await fetch(`${server.url}/health`)).status === 200);
    expect((await chat({})).choices[0]?.message.content).to.match(/tower with a light/);
  });

  it('finishes what runs after SIGTERM, turns new requests away, and ends with status 0', async () => {
    const draining = await startServer();
    let finishReason: unknown;
    let hasSignalled = false;
    for await (const data of events(await post(`${draining.url}/v1/completions`, { ...endless, max_tokens: 400 }))) {
      if (!hasSignalled) {
        hasSignalled = true;
        draining.process.kill('SIGTERM');
        await eventually(async () => (await fetch(`${draining.url}/ready`)).status === 503);
        const refused = await post(`${draining.url}/v1/chat/completions`, { messages: lighthouse });
        expect(refused.status).to.equal(503);
        expect((await fetch(`${draining.url}/live`)).status).to.equal(200);
      }
      if (data !== '[DONE]') finishReason = (JSON.parse(data) as Answer).choices[0]?.finish_reason ?? finishReason;
    }
    expect(finishReason).to.equal('length');
    expect(await draining.exited).to.equal(0);
  });

  it('ends at once on the second signal, telling the client', async () => {
    const stopped = await startServer();
    const received: string[] = [];
    for await (const data of events(await post(`${stopped.url}/v1/completions`, endless))) {
      received.push(data);
      if (received.length > 1) continue;
      stopped.process.kill('SIGINT');
      // A signal that comes while the same one is still pending is lost.
      await eventually(async () => (await fetch(`${stopped.url}/ready`)).status === 503);
      stopped.process.kill('SIGINT');
    }
    expect(received.at(-1)).to.equal('[DONE]');
    expect(received.at(-2)).to.contain('shutting down');
    expect(await stopped.exited).to.equal(0);
  });

  it('takes its engine with it when it is killed', async function () {
    if (process.platform !== 'linux') this.skip();
    const killed = await startServer();
    const pid = killed.enginePid();
    if (pid === undefined) throw new Error('the server has no engine process');
    killed.process.kill('SIGKILL');
    await killed.exited;
    await eventually(() => Promise.resolve(!existsSync(`/proc/${String(pid)}`)));
  });

  it('refuses an architecture that cannot run, naming it and those that can', async function () {
    const folder = fixtureFolder('gptoss-mxfp4');
    if (folder === undefined) this.skip();
    const { status, err } = await moeServer('start', '--port', '0', '--model', folder);
    expect(status).to.equal(2);
    expect(err).to.match(/^error: .*GptOssForCausalLM.*Qwen3MoeForCausalLM.*\n$/);
  });

  it('refuses a KV cache that does not fit, with the sum', async () => {
    const { status, err } = await moeServer('start', '--port', '0', '--model', pocketDictionary, '--kv-cache-memory-bytes', '900TB');
    expect(status).to.equal(1);
    expect(err).to.match(/^error: The KV cache does not fit: .* make .* are free/);
  });
});
