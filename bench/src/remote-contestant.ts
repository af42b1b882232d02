import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Answer, Contestant, ContestantKind, ContestantSettings, DecodeTiming, Order } from './contestant.js';
import { peakBytesOf } from './machine.js';

/** A contestant in a child process. */
export interface RemoteContestant extends Contestant {
  /** What the report calls it. */
  readonly name: string;
  readonly kind: ContestantKind;
  readonly pid: number;
  /** The most memory that its process has held; undefined where the system does not tell. */
  readonly peakBytes: () => number | undefined;
}

/** @throws {Error} with the child's message when it cannot open the model. */
export async function openContestant(name: string, kind: ContestantKind, settings: ContestantSettings): Promise<RemoteContestant> {
  const child = fork(fileURLToPath(new URL('./contestant-process.js', import.meta.url)), {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  const pid = child.pid ?? 0;
  const ask = async (order: Order): Promise<Answer> => {
    const answer = await nextAnswer(child, order);
    if (answer.type === 'failed') throw new Error(`${name}: ${answer.message}`);
    return answer;
  };
  const time = async (order: Order): Promise<DecodeTiming> => {
    const answer = await ask(order);
    if (answer.type !== 'timed') throw new Error(`${name} answered "${answer.type}" to "${order.type}".`);
    return answer;
  };
  try {
    const opened = await ask({ type: 'open', kind, settings });
    if (opened.type !== 'opened') throw new Error(`${name} answered "${opened.type}" to "open".`);
    return {
      name,
      kind,
      pid,
      facts: opened.facts,
      prefill: async (numTokens) => (await time({ type: 'prefill', numTokens })).seconds,
      decode: (contextLength, numTokens, numSequences) => time({ type: 'decode', contextLength, numTokens, numSequences }),
      peakBytes: () => peakBytesOf(pid),
      close: async () => {
        await ask({ type: 'close' });
      },
    };
  } catch (error) {
    child.kill();
    throw error;
  }
}

function nextAnswer(child: ChildProcess, order: Order): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null, signal: string | null): void => {
      reject(new Error(`The process ended (${signal ?? String(code)}) during "${order.type}".`));
    };
    child.once('exit', onExit);
    child.once('message', (answer: Answer) => {
      child.off('exit', onExit);
      resolve(answer);
    });
    child.send(order);
  });
}
