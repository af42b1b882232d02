import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { expect } from 'chai';
import { isMoeError } from '@moe-server/core';
import { fixtureFolders } from '@moe-server/test-kit';
import type { ChatMessage } from '../../src/text/chat-template.js';
import { ChatTemplate } from '../../src/text/chat-template.js';
import { loadTokenizer } from '../../src/text/tokenizer.js';

interface ChatCase {
  readonly messages: readonly ChatMessage[];
  readonly kwargs: Readonly<Record<string, unknown>>;
  readonly text: string;
  readonly ids: readonly number[];
}

const hello: readonly ChatMessage[] = [{ role: 'user', content: 'Hello!' }];

async function problem(action: Promise<unknown>): Promise<{ code: string; message: string; param: unknown }> {
  try {
    await action;
  } catch (error) {
    if (isMoeError(error)) return { code: error.code, message: error.message, param: error.details.param };
    throw error;
  }
  throw new Error('expected a MoeError');
}

describe('ChatTemplate', () => {
  let directory: string;
  const opened: ChatTemplate[] = [];
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'template-'));
  });
  afterEach(async () => {
    await Promise.all(opened.splice(0).map((template) => template.close()));
    rmSync(directory, { recursive: true });
  });

  async function open(folder: string, budget?: { milliseconds: number; megabytes: number }): Promise<ChatTemplate> {
    const template = await ChatTemplate.open(folder, budget);
    opened.push(template);
    return template;
  }

  /** Opens a folder with this template only. */
  async function openSource(template: unknown, budget?: { milliseconds: number; megabytes: number }): Promise<ChatTemplate> {
    writeFileSync(
      join(directory, 'tokenizer_config.json'),
      JSON.stringify({ chat_template: template, bos_token: '<s>', eos_token: { content: '</s>' } }),
    );
    return await open(directory, budget);
  }

  for (const folder of fixtureFolders()) {
    it(`renders as the reference of ${basename(folder)}`, async () => {
      const reference = JSON.parse(readFileSync(join(folder, 'reference.json'), 'utf8')) as { tokenizer: { chat: ChatCase[] } };
      const template = await open(folder);
      const tokenizer = await loadTokenizer(folder);
      expect(reference.tokenizer.chat).to.not.have.length(0);
      for (const { messages, kwargs, text, ids } of reference.tokenizer.chat) {
        const { add_generation_prompt: addGenerationPrompt = false, ...rest } = kwargs;
        const rendered = await template.render(messages, { addGenerationPrompt: addGenerationPrompt === true, kwargs: rest });
        expect(rendered).to.equal(text);
        expect(await tokenizer.encode(rendered, { addSpecialTokens: false })).to.deep.equal(ids);
      }
    });
  }

  it('prefers chat_template.jinja to tokenizer_config.json', async () => {
    writeFileSync(join(directory, 'chat_template.jinja'), 'from the file');
    expect(await (await openSource('from the config')).render(hello)).to.equal('from the file');
  });

  it('takes the one named default from a list', async () => {
    const list = [
      { name: 'tool_use', template: 'tools' },
      { name: 'default', template: 'plain' },
    ];
    expect(await (await openSource(list)).render(hello)).to.equal('plain');
  });

  it('knows the special tokens, and no tools', async () => {
    const template = await openSource('{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ tools is none }}');
    expect(await template.render(hello)).to.equal('<s></s>falsetrue');
  });

  it('renders many at once, in order', async () => {
    const template = await openSource('{{ messages[0].content }}');
    const texts = Array.from({ length: 20 }, (_, i) => String(i));
    expect(await Promise.all(texts.map((content) => template.render([{ role: 'user', content }])))).to.deep.equal(texts);
  });

  describe('kwargs', () => {
    it('passes names on that the template mentions', async () => {
      const template = await openSource('{{ enable_thinking }} {{ other is defined }}');
      expect(await template.render(hello, { kwargs: { enable_thinking: false, unknown: 1 } })).to.equal('false false');
    });

    for (const name of [
      'messages',
      'tools',
      'tokenize',
      'bos_token',
      'raise_exception',
      'add_generation_prompt',
      '__proto__',
      'constructor',
    ]) {
      it(`refuses ${name}`, async () => {
        const template = await openSource('{{ messages }}');
        const kwargs = JSON.parse(`{${JSON.stringify(name)}: "x"}`) as Record<string, unknown>;
        const { code, param } = await problem(template.render(hello, { kwargs }));
        expect([code, param]).to.deep.equal(['MOE_REQUEST_INVALID', `chat_template_kwargs.${name}`]);
      });
    }
  });

  describe('refusals', () => {
    it('hands on what the template says, and goes on', async () => {
      const template = await openSource("{% if messages|length > 1 %}{{ raise_exception('one message only, please') }}{% endif %}ok");
      const { code, message, param } = await problem(template.render([...hello, ...hello]));
      expect([code, param]).to.deep.equal(['MOE_REQUEST_INVALID', 'messages']);
      expect(message).to.contain('one message only, please');
      expect(await template.render(hello)).to.equal('ok');
    });

    it('does not fall over messages that the template cannot read', async () => {
      const template = await openSource('{% for m in messages %}{{ m.role + m.content }}{% endfor %}');
      for (const messages of [[{ role: 'user' }], [{ role: 'user', content: null }], [{ content: [{ type: 'text' }] }]]) {
        const outcome = await template.render(messages).catch((error: unknown) => (isMoeError(error) ? error.code : error));
        expect(outcome).to.satisfy((value: unknown) => value === 'MOE_REQUEST_INVALID' || typeof value === 'string');
      }
    });

    it('refuses messages nested too deep to hand over', async () => {
      const template = await openSource('{{ messages[0].content }}');
      let deep: unknown = 'x';
      for (let i = 0; i < 200_000; i++) deep = [deep];
      expect((await problem(template.render([{ role: 'user', content: deep }]))).code).to.equal('MOE_REQUEST_INVALID');
      expect(await template.render(hello)).to.equal('Hello!');
    });

    it('points to completions where there is no template', async () => {
      const template = await open(directory);
      expect(template.isPresent).to.equal(false);
      const { code, message } = await problem(template.render(hello));
      expect(code).to.equal('MOE_REQUEST_UNSUPPORTED');
      expect(message).to.contain('/v1/completions');
    });
  });

  describe('budget', () => {
    const budget = { milliseconds: 300, megabytes: 32 };
    const branch = (bad: string): string => `{% if messages[0].content == 'bad' %}${bad}{% endif %}ok`;
    const bad: readonly ChatMessage[] = [{ role: 'user', content: 'bad' }];
    const sources: readonly [string, string][] = [
      ['takes all memory', '{{ range(1000000000) }}'],
      ['takes too long', '{% for i in range(20000) %}{% for j in range(20000) %}{% endfor %}{% endfor %}'],
    ];
    for (const [what, source] of sources) {
      it(`ends a rendering that ${what}, keeps the event loop free and renders the next`, async () => {
        const template = await openSource(branch(source), budget);
        let numTurns = 0;
        const timer = setInterval(() => numTurns++, 5);
        const { code, message } = await problem(template.render(bad));
        clearInterval(timer);
        expect(code).to.equal('MOE_REQUEST_INVALID');
        expect(message).to.contain('300 ms and 32 MB');
        expect(numTurns).to.be.greaterThan(0);
        expect(await template.render(hello)).to.equal('ok');
      });
    }

    it('survives a recursion without end', async () => {
      const template = await openSource(branch('{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}'), budget);
      expect((await problem(template.render(bad))).code).to.equal('MOE_REQUEST_INVALID');
      expect(await template.render(hello)).to.equal('ok');
    });
  });

  describe('bad files', () => {
    it('refuses a template that is no template', async () => {
      const { code, message } = await problem(openSource('{% for %}'));
      expect(code).to.equal('MOE_CHECKPOINT_TEMPLATE');
      expect(message).to.contain('tokenizer_config.json');
    });

    it('refuses a template nested too deep to read', async () => {
      const { code } = await problem(openSource(`{{ ${'('.repeat(100_000)}1${')'.repeat(100_000)} }}`));
      expect(code).to.equal('MOE_CHECKPOINT_TEMPLATE');
    });

    for (const value of [7, [{ name: 'tool_use', template: 'x' }], {}]) {
      it(`refuses ${JSON.stringify(value)} as a template`, async () => {
        expect((await problem(openSource(value))).code).to.equal('MOE_CHECKPOINT_TEMPLATE');
      });
    }

    it('refuses a tokenizer_config.json that is not JSON', async () => {
      writeFileSync(join(directory, 'tokenizer_config.json'), '{');
      expect((await problem(open(directory))).message).to.contain('tokenizer_config.json is not valid JSON');
    });
  });
});
