import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Answer, Contestant, ContestantSettings, Order } from './contestant.js';

/** A contestant in a child process. */
export interface RemoteContestant extends Contestant {
  readonly kind: 'moe-server' | 'llama.cpp';
  readonly pid: number;
}

/** @throws {Error} with the child's message when it cannot open the model. */
export async function openContestant(kind: RemoteContestant['kind'], settings: ContestantSettings): Promise<RemoteContestant> {
  const child = fork(fileURLToPath(new URL('./contestant-process.js', import.meta.url)), {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  const ask = async (order: Order): Promise<Answer> => {
    const answer = await nextAnswer(child, order);
    if (answer.type === 'failed') throw new Error(`${kind}: ${answer.message}`);
    return answer;
  };
  const seconds = async (order: Order): Promise<number> => {
    const answer = await ask(order);
    if (answer.type !== 'seconds') throw new Error(`${kind} answered "${answer.type}" to "${order.type}".`);
    return answer.seconds;
  };
  try {
    const opened = await ask({ type: 'open', kind, settings });
    if (opened.type !== 'opened') throw new Error(`${kind} answered "${opened.type}" to "open".`);
    return {
      kind,
      pid: child.pid ?? 0,
      facts: opened.facts,
      prefill: (numTokens) => seconds({ type: 'prefill', numTokens }),
      decode: (contextLength, numTokens, numSequences) => seconds({ type: 'decode', contextLength, numTokens, numSequences }),
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
