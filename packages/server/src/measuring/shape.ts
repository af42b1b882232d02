import { MoeError } from '@moe-server/core';
import type { LayerShape } from './protocol.js';

/** `2048,768,128,8`. @throws {MoeError} MOE_USAGE. */
export function parseShape(text: string): LayerShape {
  const [hiddenSize, moeIntermediateSize, numExperts, topK, ...rest] = text.split(',').map(Number);
  const sizes = [hiddenSize, moeIntermediateSize, numExperts, topK];
  const isWhole = sizes.every((size) => size !== undefined && Number.isSafeInteger(size) && size >= 1);
  if (!isWhole || rest.length > 0 || (topK ?? 0) > (numExperts ?? 0)) {
    const message =
      `--shape takes four whole numbers, hidden size, inner size of an expert, experts and experts per token, as in ` +
      `--shape 2048,768,128,8; got "${text}".`;
    throw new MoeError('MOE_USAGE', message, { setting: 'shape', text });
  }
  return { hiddenSize: hiddenSize ?? 0, moeIntermediateSize: moeIntermediateSize ?? 0, numExperts: numExperts ?? 0, topK: topK ?? 0 };
}
