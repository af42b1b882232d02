import { ChatTemplate, loadTokenizer } from '@moe-server/engine';
import type { Tokenizer } from '@moe-server/engine';

/** The text side of a model folder, as the HTTP process uses it. */
export interface ServedText {
  readonly tokenizer: Tokenizer;
  readonly chatTemplate: ChatTemplate;
}

/**
 * @param vocabSize - of the model; the tokenizer must not go beyond.
 * @throws {MoeError} MOE_CHECKPOINT_TOKENIZER or MOE_CHECKPOINT_TEMPLATE naming the file.
 */
export async function openText(directory: string, vocabSize: number): Promise<ServedText> {
  const [tokenizer, chatTemplate] = await Promise.all([loadTokenizer(directory, vocabSize), ChatTemplate.open(directory)]);
  return { tokenizer, chatTemplate };
}
