import { openMoeServer } from './moe-server.js';
import { openLlamaCpp } from './llama-cpp.js';
import type { Answer, Contestant, Order } from './contestant.js';

/** Entry of a contestant's process: takes orders one by one. */
let contestant: Contestant | undefined;

async function follow(order: Order): Promise<Answer> {
  if (order.type === 'open') {
    contestant = await (order.kind === 'moe-server' ? openMoeServer : openLlamaCpp)(order.settings);
    return { type: 'opened', facts: contestant.facts };
  }
  if (contestant === undefined) throw new Error('The first order must be "open".');
  switch (order.type) {
    case 'prefill':
      return { type: 'timed', seconds: await contestant.prefill(order.numTokens) };
    case 'decode':
      return { type: 'timed', ...(await contestant.decode(order.contextLength, order.numTokens, order.numSequences)) };
    case 'close':
      await contestant.close();
      return { type: 'closed' };
  }
}

process.on('message', (order: Order) => {
  void follow(order)
    .catch((error: unknown): Answer => ({ type: 'failed', message: error instanceof Error ? error.message : String(error) }))
    .then((answer) => {
      process.send?.(answer);
      if (answer.type === 'closed') process.disconnect();
    });
});
