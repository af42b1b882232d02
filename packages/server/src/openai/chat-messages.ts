import { requestError, unsupportedParameter } from './errors.js';
import type { WireMessage } from './wire-types.js';

/** A message as a chat template reads it: content is one string. Plain data, snake_case because templates are. */
export interface TemplateMessage {
  readonly role: string;
  readonly content: string;
  readonly name?: string;
  readonly reasoning_content?: string;
  readonly tool_call_id?: string;
}

/**
 * Content parts become one text, text parts on lines of their own, as vLLM joins them.
 *
 * @throws {MoeError} MOE_REQUEST_UNSUPPORTED for images, audio, files and tool calls; MOE_REQUEST_INVALID for anything that is no content.
 */
export function readMessages(messages: readonly WireMessage[]): TemplateMessage[] {
  return messages.map((message, index) => {
    const path = `messages[${String(index)}]`;
    const { tool_calls: toolCalls } = message;
    if (toolCalls !== null && toolCalls !== undefined && !(Array.isArray(toolCalls) && toolCalls.length === 0)) {
      throw unsupportedParameter(`${path}.tool_calls`, `${path}.tool_calls is not supported: tool calls are not served.`);
    }
    return {
      role: message.role,
      content: readContent(message, path),
      ...present({ name: message.name, reasoning_content: message.reasoning_content, tool_call_id: message.tool_call_id }),
    };
  });
}

/** Templates ask whether a field is defined; one that is null would be. */
function present<Name extends string>(fields: Readonly<Record<Name, string | null | undefined>>): Partial<Record<Name, string>> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined)) as Partial<
    Record<Name, string>
  >;
}

function readContent({ role, content }: WireMessage, path: string): string {
  if (typeof content === 'string') return content;
  if (content === null || content === undefined) {
    if (role === 'assistant') return '';
    throw requestError(`${path}.content: expected a string or a list of parts, got nothing`, { param: `${path}.content` });
  }
  if (!Array.isArray(content)) {
    throw requestError(`${path}.content: expected a string or a list of parts, got ${typeof content}`, { param: `${path}.content` });
  }
  if (content.length === 0) throw requestError(`${path}.content: expected at least one part`, { param: `${path}.content` });
  return content.map((part: unknown, index) => readPart(part, `${path}.content[${String(index)}]`)).join('\n');
}

function readPart(part: unknown, path: string): string {
  if (typeof part === 'string') return part;
  const { type, text } = (typeof part === 'object' && part !== null ? part : {}) as { type?: unknown; text?: unknown };
  if (type !== 'text' && typeof type === 'string') {
    const shown = JSON.stringify(type.slice(0, 40));
    throw unsupportedParameter(`${path}.type`, `${path}: parts of type ${shown} are not supported, only text.`);
  }
  if (type !== 'text' || typeof text !== 'string') {
    throw requestError(`${path}: expected {"type": "text", "text": string}`, { param: path });
  }
  return text;
}
