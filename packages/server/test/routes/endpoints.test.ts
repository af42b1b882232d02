import { expect } from 'chai';
import { post, startScriptedServer, until } from '../scripted-server.js';
import type { TestServer } from '../scripted-server.js';

const messages = [{ role: 'user', content: 'hi' }];

describe('the endpoints', () => {
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer();
  });
  after(() => server.close());

  const get = (path: string, headers: Record<string, string> = {}): Promise<Response> => fetch(server.url + path, { headers });

  it('lists the model under each of its names', async () => {
    const list = (await (await get('/v1/models')).json()) as { data: Record<string, unknown>[] };
    expect(list.data.map(({ id }) => id)).to.deep.equal(['byte-model', 'org/alias']);
    expect(list.data[0]).to.deep.include({ object: 'model', root: 'byte-model', max_model_len: 200 });
  });

  it('shows one model, also when its name holds a slash', async () => {
    expect(await (await get('/v1/models/org/alias')).json()).to.deep.include({ id: 'org/alias' });
    const missing = await get('/v1/models/other');
    expect(missing.status).to.equal(404);
    expect(await missing.json()).to.have.nested.property('error.code', 'model_not_found');
  });

  it('answers requests for any of its names with the name that was asked for', async () => {
    const answer = await post(`${server.url}/v1/chat/completions`, { messages, model: 'org/alias' });
    expect(await answer.json()).to.have.property('model', 'org/alias');
  });

  it('tokenizes text and conversations, and back', async () => {
    const text = await post(`${server.url}/tokenize`, { prompt: 'ab', return_token_strs: true });
    expect(await text.json()).to.deep.equal({ count: 2, max_model_len: 200, tokens: [97, 98], token_strs: ['<97>', '<98>'] });
    const chat = (await (await post(`${server.url}/tokenize`, { messages })).json()) as { tokens: number[] };
    expect(Buffer.from(chat.tokens).toString()).to.equal('user:hi\n{}assistant:');
    const back = await post(`${server.url}/detokenize`, { tokens: [97, 98] });
    expect(await back.json()).to.deep.equal({ prompt: 'ab' });
    expect((await post(`${server.url}/detokenize`, { tokens: [300] })).status).to.equal(400);
    expect((await post(`${server.url}/tokenize`, {})).status).to.equal(400);
    expect((await post(`${server.url}/tokenize`, { prompt: 'a', messages })).status).to.equal(400);
  });

  it('answers with the version, the plan, and a list of everything at /', async () => {
    expect(await (await get('/version')).json()).to.deep.equal({ version: '0.0.0-test' });
    expect(await (await get('/v1/moe/plan')).json()).to.deep.include({ version: 1, layers: [], hash: '0' });
    expect(await (await get('/')).text()).to.contain('/v1/chat/completions');
  });

  it('has Prometheus metrics under the names that vLLM has', async () => {
    await (await post(`${server.url}/v1/chat/completions`, { messages })).json();
    const text = await (await get('/metrics')).text();
    expect(text).to.match(/^vllm:num_requests_running\{model_name="byte-model",engine="0"\} 3$/m);
    expect(text).to.match(/^vllm:num_requests_waiting\{.*\} 2$/m);
    expect(text).to.match(/^vllm:kv_cache_usage_perc\{.*\} 0.5$/m);
    expect(text).to.match(/^vllm:prefix_cache_hits_total\{.*\} 7$/m);
    expect(text).to.match(/^vllm:request_success_total\{.*finished_reason="stop"\} \d+$/m);
    expect(text).to.match(/^vllm:time_to_first_token_seconds_count\{.*\} \d+$/m);
    expect(text).to.match(/^vllm:cache_config_info\{.*block_size="16",num_gpu_blocks="64".*\} 1$/m);
    expect(text).to.match(/^http_requests_total\{handler="\/v1\/chat\/completions",method="POST",status="2xx"\} \d+$/m);
  });

  it('never lets a caller make a new metric', async () => {
    await post(`${server.url}/v1/completions`, { prompt: 'a', model: 'canary-model' });
    await get('/canary-path');
    const text = await (await get('/metrics')).text();
    expect(text).not.to.contain('canary');
  });

  it('echoes x-request-id, makes one otherwise, and refuses to echo what could end a header', async () => {
    expect((await get('/version', { 'x-request-id': 'abc-1' })).headers.get('x-request-id')).to.equal('abc-1');
    expect((await get('/version')).headers.get('x-request-id')).to.match(/^req-/);
    expect((await get('/version', { 'x-request-id': 'a b' })).headers.get('x-request-id')).to.match(/^req-/);
  });

  it('answers unknown paths with 404 and known ones with 405 and Allow', async () => {
    for (const path of ['/v2/models', '/V1/models', '/v1/models/', '//v1/models', '/v1/chat%2fcompletions']) {
      const response = await get(path);
      expect(response.status, path).to.equal(404);
      expect(await response.json()).to.have.nested.property('error.type', 'invalid_request_error');
    }
    const wrong = await get('/v1/chat/completions');
    expect(wrong.status).to.equal(405);
    expect(wrong.headers.get('allow')).to.equal('POST');
    expect(await wrong.json()).to.have.property('error');
  });

  it('answers 503 with Retry-After while the model loads, and /live all the same', async () => {
    const loading = await startScriptedServer({ isLoading: true });
    for (const path of ['/health', '/ready', '/v1/models', '/v1/moe/plan']) {
      const response = await fetch(loading.url + path);
      expect(response.status, path).to.equal(503);
      expect(response.headers.get('retry-after'), path).to.equal('2');
    }
    expect((await post(`${loading.url}/v1/chat/completions`, { messages })).status).to.equal(503);
    expect((await fetch(`${loading.url}/live`)).status).to.equal(200);
    await loading.close();
  });

  it('turns new requests away while draining, healthy but not ready', async () => {
    const draining = await startScriptedServer();
    draining.lifecycle.enter('draining');
    expect((await post(`${draining.url}/v1/chat/completions`, { messages })).status).to.equal(503);
    expect((await fetch(`${draining.url}/ready`)).status).to.equal(503);
    expect((await fetch(`${draining.url}/health`)).status).to.equal(200);
    await draining.close();
  });

  it('answers 429 with Retry-After when the queue is full, before the prompt is tokenized', async () => {
    const busy = await startScriptedServer({ maxNumQueued: 1 });
    busy.engine.script = () => 'hold';
    const controller = new AbortController();
    const headers = { 'content-type': 'application/json' };
    const body = JSON.stringify({ prompt: ['a', 'b', 'c', 'd', 'e'] });
    const held = fetch(`${busy.url}/v1/completions`, { method: 'POST', headers, body, signal: controller.signal }).catch(() => undefined);
    await until(() => busy.admission.numAdmitted === 5 && busy.engine.requests.length === 5);
    const refused = await post(`${busy.url}/v1/completions`, { prompt: 'a' });
    expect(refused.status).to.equal(429);
    expect(refused.headers.get('retry-after')).to.equal('1');
    expect(await refused.json()).to.have.nested.property('error.type', 'rate_limit_error');
    expect(busy.engine.requests).to.have.length(5);
    controller.abort();
    await held;
    await until(() => busy.admission.numAdmitted === 0);
    await busy.close();
  });
});

describe('the keys', () => {
  const canary = 'sk-canary-0123456789';
  let server: TestServer;
  before(async () => {
    server = await startScriptedServer({ apiKeys: ['other', canary], corsOrigins: ['https://chat.example'] });
  });
  after(() => server.close());

  const status = async (path: string, headers: Record<string, string> = {}): Promise<number> => {
    const response = await fetch(server.url + path, { headers });
    await response.arrayBuffer();
    return response.status;
  };

  it('guards every path but health, live and ready', async () => {
    for (const path of ['/', '/v1/models', '/metrics', '/version', '/v1/moe/plan']) expect(await status(path), path).to.equal(401);
    for (const path of ['/health', '/live', '/ready']) expect(await status(path), path).to.equal(200);
  });

  it('takes any of the keys as bearer or x-api-key', async () => {
    expect(await status('/v1/models', { authorization: `Bearer ${canary}` })).to.equal(200);
    expect(await status('/v1/models', { authorization: 'bearer other' })).to.equal(200);
    expect(await status('/v1/models', { 'x-api-key': canary })).to.equal(200);
  });

  it('refuses parts of a key, other spellings of a path, and other schemes', async () => {
    for (const authorization of [`Bearer ${canary.slice(0, -1)}`, `Bearer ${canary}x`, `Basic ${canary}`, canary, 'Bearer ']) {
      expect(await status('/v1/models', { authorization }), authorization).to.equal(401);
    }
    for (const path of ['/V1/models', '/v1/models/', '//v1/models', '/v1/%6dodels', '/./v1/models']) {
      expect(await status(path), path).to.be.oneOf([401, 404]);
    }
    const posted = await post(`${server.url}/v1/chat/completions`, { messages }, { 'x-http-method-override': 'GET' });
    expect(posted.status).to.equal(401);
    expect(posted.headers.get('www-authenticate')).to.equal('Bearer');
  });

  it('keeps keys out of the log and the metrics', async () => {
    await status('/v1/models', { authorization: `Bearer ${canary}` });
    const metrics = await fetch(`${server.url}/metrics`, { headers: { 'x-api-key': canary } });
    expect(await metrics.text()).not.to.contain(canary);
    expect(server.logLines.join('')).not.to.contain(canary);
  });

  it('answers preflights of listed origins before it asks for a key', async () => {
    const preflight = (origin: string): Promise<Response> =>
      fetch(`${server.url}/v1/models`, { method: 'OPTIONS', headers: { origin, 'access-control-request-method': 'GET' } });
    const listed = await preflight('https://chat.example');
    expect(listed.status).to.equal(204);
    expect(listed.headers.get('access-control-allow-origin')).to.equal('https://chat.example');
    expect(listed.headers.get('access-control-allow-credentials')).to.equal(null);
    const foreign = await preflight('https://evil.example');
    expect(foreign.headers.get('access-control-allow-origin')).to.equal(null);
  });
});
