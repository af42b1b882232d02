import type { Plan, RuleRefusal } from '@moe-server/core';
import { expect } from 'chai';
import { logStream } from '../../src/terminal/log-stream.js';
import { planLines, planText } from '../../src/terminal/plan-text.js';
import { createProgress } from '../../src/terminal/progress.js';
import { refusalLines } from '../../src/terminal/refusal-text.js';
import { StartReport } from '../../src/terminal/start-report.js';
import { wrapText } from '../../src/terminal/wrapped-text.js';
import { byteModel } from '../byte-model.js';

/** A stream that keeps what is written, without its colours. */
function recorder(
  isTTY = false,
  columns?: number,
): { text: () => string; stream: { write: (text: string) => void; isTTY: boolean; columns?: number } } {
  let text = '';
  const write = (piece: string): void => {
    text += piece;
  };
  return { text: () => text.replace(/\u001b\[[\d;]*m/g, ''), stream: { write, isTTY, ...(columns === undefined ? {} : { columns }) } };
}

const layer = (name: string, scheme: string, backend: string | undefined): Plan['layers'][number] => ({
  name,
  kind: 'moe',
  role: 'target',
  scheme,
  experts: [0, 1],
  bindings:
    backend === undefined
      ? []
      : [
          {
            backend,
            rule: 'fast',
            tokens: { min: 1, max: 512 },
            layout: 'x/y@1',
            numerics: 'wider',
            built: true,
            because: 'it is the only one',
          },
        ],
  eligible: [],
  refused: [
    {
      backend: 'other',
      rule: 'slow',
      reasons: [
        { dimension: 'scheme', message: `it runs nvfp4.w4a4; these weights are ${scheme}.`, required: ['nvfp4.w4a4'], actual: scheme },
      ],
    },
  ],
  bytes: { residentBytes: 1000, preparePeakBytes: 0, workspaceBytes: 0 },
});

const plan: Plan = {
  ...byteModel.plan,
  layers: [layer('model.layers.0.mlp.experts', 'fp8.channel', 'cpu'), layer('model.layers.1.mlp.experts', 'bf16', undefined)],
  notices: ['--moe-backend b12x (flag): no backend named b12x is installed.'],
};

describe('createProgress', () => {
  it('writes one line per 10 % where nobody looks', () => {
    const { text, stream } = recorder();
    const progress = createProgress(stream, 'weights ');
    for (let done = 0; done <= 100; done++) progress.update(done * 2 ** 20, 100 * 2 ** 20);
    progress.stop();
    const lines = text().trimEnd().split('\n');
    expect(lines).to.have.length(11);
    expect(lines.at(-1)).to.equal('weights 100 % of 100.0 MiB');
  });
});

describe('planLines', () => {
  it('has one line per scheme and kernel, with the reason of what is not served', () => {
    const [bf16, fp8] = planLines(plan, undefined);
    expect(bf16).to.match(/^1 × +experts +bf16 +not served .*it runs nvfp4\.w4a4; these weights are bf16\.$/);
    expect(fp8).to.match(/^1 × +experts +fp8\.channel +cpu \(fast\) +wider +it is the only one$/);
  });

  it('cuts lines to the width of the terminal', () => {
    for (const line of planLines(plan, 40)) expect(line).to.have.length(40).and.to.match(/…$/);
  });
});

describe('StartReport', () => {
  it('does not cut the plan where the terminal does not know its width', () => {
    const { text, stream } = recorder(true, 0);
    new StartReport(stream, '/models/any').take({
      type: 'plan',
      plan,
      architecture: 'ByteForCausalLM',
      quantization: 'modelopt',
      vocabSize: 256,
    });
    expect(text()).to.contain('it is the only one').and.not.to.contain('…');
  });

  it('shows plugins, plan, memory, address and a line to try', () => {
    const { text, stream } = recorder();
    const report = new StartReport(stream, '/models/any');
    report.begin('1.2.3');
    const plugin = { name: 'cpu', version: '1.0.0', source: '@moe-server/backend-cpu', moeBackends: ['cpu'], linearBackends: ['cpu'] };
    report.take({ type: 'plugins', plugins: [plugin], problems: ['The plugin broken cannot be imported.'] });
    report.take({ type: 'plan', plan, architecture: 'ByteForCausalLM', quantization: 'modelopt', vocabSize: 256 });
    report.take({ type: 'progress', bytesDone: 5, bytesTotal: 5 });
    report.ready(byteModel, 'http://127.0.0.1:8000', 'any', ['everybody may use it']);
    for (const part of [
      'moe-server 1.2.3',
      'cpu 1.0.0 (@moe-server/backend-cpu)',
      'The plugin broken cannot be imported.',
      '/models/any',
      'ByteForCausalLM, modelopt',
      'no backend named b12x',
      '100 %',
      'room for 1024 tokens; a sequence has at most 200',
      'http://127.0.0.1:8000 as "any"',
      'everybody may use it',
      'curl http://127.0.0.1:8000/v1/chat/completions',
    ]) {
      expect(text()).to.contain(part);
    }
  });
});

describe('logStream', () => {
  const line = (fields: object): string => `${JSON.stringify({ level: 30, time: 0, msg: 'request', ...fields })}\n`;

  it('passes JSON on where nobody looks', () => {
    const { text, stream } = recorder();
    logStream(stream).write(line({ status: 200 }));
    expect(JSON.parse(text())).to.have.property('status', 200);
  });

  it('writes short lines at a terminal', () => {
    const { text, stream } = recorder(true);
    const log = logStream(stream);
    log.write(line({ method: 'POST', path: '/v1/completions', status: 200, ms: 12, prompt_tokens: 3, completion_tokens: 4 }));
    log.write(line({ method: 'POST', path: '/v1/completions', status: 400, ms: 1, reason: 'prompt: is empty' }));
    log.write(line({ method: 'POST', path: '/v1/completions', status: 499, ms: 5, aborted: true }));
    log.write(line({ level: 50, msg: 'The engine process died (SIGKILL).' }));
    const lines = text()
      .trimEnd()
      .split('\n')
      .map((one) => one.slice('00:00:00 '.length));
    expect(lines).to.deep.equal([
      'POST /v1/completions 200 in 12 ms, 3 tokens in, 4 out',
      'POST /v1/completions 400 in 1 ms: prompt: is empty',
      'POST /v1/completions the client left in 5 ms',
      'error The engine process died (SIGKILL).',
    ]);
  });
});

describe('planText', () => {
  const text = planText(plan, { width: undefined, explain: true }).join('\n');

  it('has a line per choice under a head, and the layers and the reason below it', () => {
    const [head, bf16, layers, because] = text.split('\n');
    expect(head).to.match(/^layers +kind +scheme +kernel +numerics +built +memory$/);
    expect(bf16).to.match(/^ +1 +experts +bf16 +NOT SERVED$/);
    expect([layers, because]).to.deep.equal([
      '    model.layers.1.mlp.experts',
      '    not served: it runs nvfp4.w4a4; these weights are bf16.',
    ]);
    expect(text).to.match(/^ +1 +experts +fp8\.channel +cpu\/fast +wider +yes +1000 B$/m);
  });

  it('says kind and scheme once for layers that got different kernels', () => {
    const two = { ...plan, layers: [layer('a.0', 'bf16', 'cpu'), layer('a.1', 'bf16', 'triton')] };
    expect(planText(two, { width: 80, explain: false }).filter((line) => line.includes('bf16'))).to.have.length(1);
  });

  it('lists refusals only when asked', () => {
    expect(text).to.contain('refused    other: it runs');
    expect(planText(plan, { width: undefined, explain: false }).join('\n')).to.not.contain('refused');
  });
});

describe('refusalLines', () => {
  const refusal = (dimension: 'scheme' | 'device' | 'hiddenSize', message: string): RuleRefusal['reasons'][number] => ({
    dimension,
    message,
    required: ['nvfp4.w4a4'],
    actual: 'bf16',
  });

  it('joins the rules of a backend that give the same reasons, and counts those for other schemes', () => {
    const lines = refusalLines(
      {
        ...layer('a', 'bf16', 'cpu'),
        refused: [
          { backend: 'gpu', rule: 'x', reasons: [refusal('device', 'It needs a GPU.')] },
          { backend: 'gpu', rule: 'y', reasons: [refusal('device', 'It needs a GPU.')] },
          { backend: 'gpu', rule: 'z', reasons: [refusal('scheme', 'It runs nvfp4.')] },
          { backend: 'b12x', rule: 'w', reasons: [refusal('scheme', 'It runs nvfp4.')] },
        ],
      },
      100,
      '  ',
    );
    expect(lines).to.deep.equal([
      '  refused    gpu/x, y: It needs a GPU.',
      '  refused    b12x: it runs nvfp4.w4a4; these weights are bf16.',
      '  besides    rules for other schemes, in full with --json: 1 of gpu.',
    ]);
  });
});

describe('wrapText', () => {
  it('breaks at spaces and leaves long words whole', () => {
    expect(wrapText('one two three-and-more four', 10, '- ', '  ')).to.deep.equal(['- one two', '  three-and-more', '  four']);
  });
});
