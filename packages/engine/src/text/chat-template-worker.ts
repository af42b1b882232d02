import { parentPort, workerData } from 'node:worker_threads';
import { Template } from '@huggingface/jinja';
import type { WorkerData, WorkerReply, WorkerRequest } from './chat-template.js';

/** Renders the chat template of one model; see chat-template.ts for why in a thread of its own. */
const port = parentPort;
if (port === null) throw new Error('chat-template-worker runs as a worker thread only');
const { template: source } = workerData as WorkerData;

const send = (reply: WorkerReply): void => {
  port.postMessage(reply);
};

function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/** Names of the variables that the template mentions. */
function namesIn(node: unknown, names: Set<string>): Set<string> {
  if (typeof node !== 'object' || node === null) return names;
  const { type, value } = node as { type?: unknown; value?: unknown };
  if (type === 'Identifier' && typeof value === 'string') names.add(value);
  for (const child of node instanceof Map ? [...node.entries()].flat() : Object.values(node)) namesIn(child, names);
  return names;
}

try {
  const template = new Template(source);
  send({ type: 'ready', names: [...namesIn(template.parsed, new Set())] });
  port.on('message', ({ variables }: WorkerRequest) => {
    try {
      send({ type: 'text', text: template.render(variables) });
    } catch (thrown) {
      send({ type: 'refused', message: messageOf(thrown) });
    }
  });
} catch (thrown) {
  send({ type: 'invalid', message: messageOf(thrown) });
}
