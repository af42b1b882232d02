import { describeDevice, formatBytes } from '@moe-server/core';
import type { EngineMessage, ModelInfo } from '../engine/engine-protocol.js';
import { planLines } from './plan-text.js';
import { createProgress } from './progress.js';
import type { Progress } from './progress.js';
import { paint } from './terminal.js';
import type { TerminalStream } from './terminal.js';

const labelWidth = 11;

/** What a person sees while `moe-server start` starts: plugins, plan, progress, address, a line to try. */
export class StartReport {
  private progress: Progress | undefined;

  /** @param directory - folder of the model. */
  constructor(
    private readonly out: TerminalStream,
    private readonly directory: string,
  ) {}

  begin(version: string): void {
    this.out.write(`${paint(this.out, 'bold', `moe-server ${version}`)}\n\n`);
  }

  /** Messages of an engine process that loads. */
  take(message: EngineMessage): void {
    switch (message.type) {
      case 'plugins': {
        const names = message.plugins.map(({ name, version, source }) => `${name} ${version} (${source})`);
        this.line('plugins', names.length === 0 ? 'none' : names.join(', '));
        for (const problem of message.problems) this.line('', paint(this.out, 'yellow', problem));
        return;
      }
      case 'plan':
        this.line('model', this.directory);
        this.line('', `${message.architecture}, ${message.quantization}`);
        planLines(message.plan, planWidth(this.out.columns)).forEach((text, index) => {
          this.line(index === 0 ? 'plan' : '', text);
        });
        if (message.plan.assumesBuilt) {
          this.line(
            'device',
            paint(this.out, 'yellow', `${describeDevice(message.plan.device)}, simulated: every kernel's declared arithmetic,`),
          );
          this.line('', paint(this.out, 'yellow', 'in TypeScript. Slow: for trying a plan and judging kernels, not for serving.'));
        }
        for (const notice of message.plan.notices) this.line('', paint(this.out, 'yellow', notice));
        return;
      case 'refused':
        this.note(paint(this.out, 'red', message.sentence));
        return;
      case 'progress':
        this.progress ??= createProgress(this.out, label(this.out, 'weights'));
        this.progress.update(message.bytesDone, message.bytesTotal);
        return;
      default:
        return;
    }
  }

  ready({ maxModelLen, kvCache, weightBytes }: ModelInfo, url: string, name: string, warnings: readonly string[]): void {
    this.stopProgress();
    const numTokens = kvCache.numBlocks * kvCache.blockSize;
    this.line('memory', `${formatBytes(weightBytes)} of weights, ${formatBytes(kvCache.bytes)} of KV cache (${kvCache.dtype})`);
    this.line('', `room for ${String(numTokens)} tokens; a sequence has at most ${String(maxModelLen)}`);
    this.line('serving', `${paint(this.out, 'green', url)} as "${name}"`);
    for (const warning of warnings) this.line('', paint(this.out, 'yellow', warning));
    this.out.write(
      `\nTry it:\n  curl ${url}/v1/chat/completions -H 'content-type: application/json' \\\n` +
        `    -d '{"messages": [{"role": "user", "content": "What is a lighthouse?"}]}'\n\n`,
    );
  }

  /** A sentence at any time, on a line of its own. */
  note(text: string): void {
    this.stopProgress();
    this.line('', text);
  }

  stopProgress(): void {
    this.progress?.stop();
    this.progress = undefined;
  }

  private line(name: string, text: string): void {
    this.out.write(`${label(this.out, name)}${text}\n`);
  }
}

function label(out: TerminalStream, name: string): string {
  return paint(out, 'dim', name.padEnd(labelWidth));
}

/** Some pseudo terminals say 0 when they do not know. */
function planWidth(columns: number | undefined): number | undefined {
  return columns === undefined || columns === 0 ? undefined : columns - labelWidth;
}
