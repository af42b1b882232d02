import type { Tokenizer, TokenOutput } from '@moe-server/engine';

/** How tokens are written in log-probabilities. */
export interface TokenSpelling {
  readonly tokenizer: Tokenizer;
  /** `token_id:123` instead of the text, for callers that must tell apart tokens of equal text. */
  readonly asTokenIds: boolean;
}

/** One token as it stands in log-probabilities. */
export function spellToken({ tokenizer, asTokenIds }: TokenSpelling, tokenId: number): string {
  return asTokenIds ? `token_id:${String(tokenId)}` : tokenizer.tokenText(tokenId);
}

/** JSON has no −Infinity; the OpenAI API writes this for "practically impossible". */
const leastLogprob = -9999;

function wireLogprob(logprob: number | undefined): number {
  return logprob === undefined || !(logprob > leastLogprob) ? leastLogprob : logprob;
}

export interface ChatTokenLogprob {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

export interface ChatLogprobs {
  readonly content: readonly (ChatTokenLogprob & { readonly top_logprobs: readonly ChatTokenLogprob[] })[];
}

/** Log-probabilities the way chat completions have them. */
export function chatLogprobs(spelling: TokenSpelling, tokens: readonly TokenOutput[], numTop: number): ChatLogprobs {
  const entry = (tokenId: number, logprob: number | undefined): ChatTokenLogprob => ({
    token: spellToken(spelling, tokenId),
    logprob: wireLogprob(logprob),
    bytes: [...spelling.tokenizer.tokenBytes(tokenId)],
  });
  return {
    content: tokens.map(({ tokenId, logprob, topLogprobs }) => ({
      ...entry(tokenId, logprob),
      top_logprobs: (topLogprobs ?? []).slice(0, numTop).map((top) => entry(top.tokenId, top.logprob)),
    })),
  };
}

export interface CompletionLogprobs {
  readonly text_offset: number[];
  readonly token_logprobs: (number | null)[];
  readonly tokens: string[];
  readonly top_logprobs: (Record<string, number> | null)[];
}

/**
 * Log-probabilities the way completions have them: parallel lists, and as alternatives a map from token text to log-probability that
 * also holds the token itself.
 *
 * @param tokens - undefined log-probabilities stand for the first token of a prompt, which has no context.
 * @param firstOffset - characters (code points, as Python counts) of the text before the first token.
 */
export function completionLogprobs(
  spelling: TokenSpelling,
  tokens: readonly TokenOutput[],
  numTop: number,
  firstOffset: number,
): CompletionLogprobs {
  const lists: CompletionLogprobs = { text_offset: [], token_logprobs: [], tokens: [], top_logprobs: [] };
  let offset = firstOffset;
  for (const { tokenId, logprob, topLogprobs } of tokens) {
    const token = spellToken(spelling, tokenId);
    lists.tokens.push(token);
    lists.text_offset.push(offset);
    offset += numCharacters(spelling.tokenizer.tokenText(tokenId));
    if (logprob === undefined) {
      lists.token_logprobs.push(null);
      lists.top_logprobs.push(null);
      continue;
    }
    lists.token_logprobs.push(wireLogprob(logprob));
    const top: Record<string, number> = {};
    for (const alternative of (topLogprobs ?? []).slice(0, numTop)) {
      const name = spellToken(spelling, alternative.tokenId);
      // Two tokens may have the same text; the more probable one keeps it.
      if (!Object.hasOwn(top, name)) top[name] = wireLogprob(alternative.logprob);
    }
    if (numTop > 0 && !Object.hasOwn(top, token)) top[token] = wireLogprob(logprob);
    lists.top_logprobs.push(numTop > 0 ? top : null);
  }
  return lists;
}

/** In code points. */
export function numCharacters(text: string): number {
  let count = 0;
  for (const character of text) count += character === '' ? 0 : 1;
  return count;
}

/** vLLM's `prompt_logprobs`: per prompt token a map from token id to its log-probability, null for the first. */
export function promptLogprobs(
  tokenizer: Tokenizer,
  tokens: readonly (TokenOutput | undefined)[],
  numTop: number,
): (Record<string, { logprob: number; rank: number; decoded_token: string }> | null)[] {
  return tokens.map((token) => {
    if (token?.logprob === undefined) return null;
    const entries: Record<string, { logprob: number; rank: number; decoded_token: string }> = {
      [token.tokenId]: { logprob: wireLogprob(token.logprob), rank: token.rank ?? 0, decoded_token: tokenizer.tokenText(token.tokenId) },
    };
    (token.topLogprobs ?? []).slice(0, numTop).forEach(({ tokenId, logprob }, index) => {
      entries[tokenId] = { logprob: wireLogprob(logprob), rank: index + 1, decoded_token: tokenizer.tokenText(tokenId) };
    });
    return entries;
  });
}
