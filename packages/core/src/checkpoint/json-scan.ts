/** What {@link scanJson} finds out about a JSON text without building it. */
export interface JsonScan {
  /** Members of objects at each depth: [1] counts the members of the outermost object. */
  readonly membersAtDepth: readonly number[];
  /** Offset of the first value, outside strings, that is not made of digits, brackets, commas and colons; −1 when all are. */
  readonly firstOtherLiteral: number;
  /** Offset at which the nesting became deeper than allowed, −1 when it never did. */
  readonly tooDeepAt: number;
}

const quote = 0x22;
const backslash = 0x5c;

/**
 * One pass over the bytes of a JSON text, before it is parsed. JSON.parse keeps the last of two equal keys and accepts any depth; counting
 * members here and comparing with the parsed objects shows duplicates, and depth is bounded before anything recursive sees the value.
 * Says nothing about whether the text is valid JSON.
 */
export function scanJson(bytes: Uint8Array, maxDepth: number): JsonScan {
  const membersAtDepth = new Array<number>(maxDepth + 1).fill(0);
  let depth = 0;
  let firstOtherLiteral = -1;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!;
    if (byte === quote) {
      i++;
      while (i < bytes.length && bytes[i] !== quote) i += bytes[i] === backslash ? 2 : 1;
    } else if (byte === 0x7b || byte === 0x5b) {
      depth++;
      if (depth > maxDepth) return { membersAtDepth, firstOtherLiteral, tooDeepAt: i };
    } else if (byte === 0x7d || byte === 0x5d) {
      depth = Math.max(depth - 1, 0);
    } else if (byte === 0x3a) {
      membersAtDepth[depth] = membersAtDepth[depth]! + 1;
    } else if (firstOtherLiteral < 0 && !isPlain(byte)) {
      firstOtherLiteral = i;
    }
  }
  return { membersAtDepth, firstOtherLiteral, tooDeepAt: -1 };
}

/** Digit, comma or white space. */
function isPlain(byte: number): boolean {
  return (byte >= 0x30 && byte <= 0x39) || byte === 0x2c || byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
}

/** A plain JSON object. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
