import { requestError } from '../openai/errors.js';
import type { TemplateMessage } from '../openai/chat-messages.js';
import { requirePlausibleLength } from '../openai/prompt-length.js';
import type { TemplateFields } from '../openai/wire-types.js';
import type { ServedModel } from './endpoint.js';

/**
 * A conversation to the model's token ids.
 *
 * @param addSpecialTokens - false for nearly all models: their templates write the special tokens themselves.
 * @throws {MoeError} MOE_REQUEST_INVALID when the template refuses the messages; MOE_REQUEST_UNSUPPORTED when the model has none.
 */
export async function chatPrompt(
  { tokenizer, chatTemplate, info }: ServedModel,
  fields: TemplateFields,
  messages: readonly TemplateMessage[],
  addSpecialTokens: boolean,
): Promise<number[]> {
  const continueFinalMessage = fields.continue_final_message ?? false;
  const addGenerationPrompt = fields.add_generation_prompt ?? !continueFinalMessage;
  if (continueFinalMessage && addGenerationPrompt) {
    throw requestError('continue_final_message: expected add_generation_prompt to be false beside it', { param: 'continue_final_message' });
  }
  const kwargs = {
    ...(fields.reasoning_effort === undefined ? {} : { reasoning_effort: fields.reasoning_effort }),
    ...fields.chat_template_kwargs,
  };
  const rendered = await chatTemplate.render(
    messages.map((message) => ({ ...message })),
    { addGenerationPrompt, kwargs },
  );
  const prompt = continueFinalMessage ? cutAfterFinalMessage(rendered, messages.at(-1)) : rendered;
  requirePlausibleLength(prompt, info.maxModelLen, 'messages');
  const tokenIds = await tokenizer.encode(prompt, { addSpecialTokens });
  if (tokenIds.length === 0) throw requestError('messages: the chat template made no token of them', { param: 'messages' });
  return tokenIds;
}

/** Templates close every turn; what follows the final message's own text goes, so that the model continues inside it. */
function cutAfterFinalMessage(rendered: string, message: TemplateMessage | undefined): string {
  if (message?.role !== 'assistant' || message.content.trim() === '') {
    throw requestError('continue_final_message: expected the last message to be from the assistant and not empty', { param: 'messages' });
  }
  // Some templates trim what they are given.
  for (const content of [message.content, message.content.trim()]) {
    const at = rendered.lastIndexOf(content);
    if (at >= 0) return rendered.slice(0, at + content.length);
  }
  throw requestError("continue_final_message: the model's chat template changes the last message, so it cannot be continued", {
    param: 'continue_final_message',
  });
}
