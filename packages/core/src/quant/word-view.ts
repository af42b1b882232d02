/** Bytes as words of four, for loops that look at several bytes at once. */
export interface WordView {
  /** Bytes before the first word. */
  readonly head: number;
  readonly words: Int32Array;
}

/** As many whole words of `bytes`, wherever it lies in its buffer, as make whole groups of `group` words. Bytes before and after are the caller's. */
export function wordView(bytes: Uint8Array, group: number): WordView {
  const head = -bytes.byteOffset & 3;
  const numWords = ((bytes.length - head) >> 2) - (((bytes.length - head) >> 2) % group);
  if (numWords <= 0) return { head: 0, words: new Int32Array(0) };
  return { head, words: new Int32Array(bytes.buffer, bytes.byteOffset + head, numWords) };
}
