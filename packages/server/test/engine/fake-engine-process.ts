import type { EngineEvent } from '@moe-server/engine';
import type { EngineCommand, EngineMessage } from '../../src/engine/engine-protocol.js';
import { noStats } from '../../src/engine/engine-protocol.js';
import { byteModel } from '../byte-model.js';

/**
 * An engine process without an engine. The first prompt token of a request says what happens: 1 = two tokens, 2 = the process dies,
 * 3 = nothing until it is aborted, 4 = the process falls silent. It does not start when it is handed the keys of the HTTP side.
 */
const send = (message: EngineMessage): void => void process.send?.(message);
let heartbeat: NodeJS.Timeout | undefined;

process.on('disconnect', () => process.exit(0));
process.on('message', (command: EngineCommand) => {
  switch (command.type) {
    case 'start':
      if (command.settings.model === 'bad') {
        process.send?.({ type: 'failed', error: { code: 'MOE_CHECKPOINT_NOT_FOUND', message: 'no such folder', details: {} } }, () =>
          process.exit(1),
        );
        return;
      }
      if (process.env.MOE_API_KEY !== undefined) process.exit(1);
      if (command.settings.model === 'crash') process.kill(process.pid, 'SIGSEGV');
      send({ type: 'ready', model: byteModel });
      heartbeat = setInterval(() => {
        send({ type: 'heartbeat', stats: noStats, metrics: { ttftMs: [], itlMs: [], stepTokens: [], requests: [], numDropped: 0 } });
      }, 5);
      return;
    case 'generate': {
      const { id: requestId, promptTokenIds } = command.request;
      const token = (tokenId: number): EngineEvent => ({
        type: 'token',
        requestId,
        token: { tokenId, logprob: undefined, rank: undefined, topLogprobs: undefined },
      });
      const usage = { promptTokens: 1, completionTokens: 2, cachedTokens: 0 };
      if (promptTokenIds[0] === 1) {
        send({ type: 'events', events: [token(65)] });
        send({ type: 'events', events: [token(66), { type: 'finish', requestId, reason: 'length', stopTokenId: undefined, usage }] });
      }
      if (promptTokenIds[0] === 2) process.kill(process.pid, 'SIGKILL');
      if (promptTokenIds[0] === 4) clearInterval(heartbeat);
      return;
    }
    case 'abort': {
      const usage = { promptTokens: 1, completionTokens: 0, cachedTokens: 0 };
      send({ type: 'events', events: [{ type: 'finish', requestId: command.requestId, reason: 'abort', stopTokenId: undefined, usage }] });
      return;
    }
    case 'close':
      process.exit(0);
  }
});
