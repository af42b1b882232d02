/** Columns for sentences: those of the terminal, 120 at most, and where nobody watches. */
export function textWidth(columns: number | undefined): number {
  return Math.min(Math.max(columns ?? 120, 60), 120);
}

/**
 * Breaks a text at spaces into lines of at most `width` columns; a word that is longer stands alone. Lines after the first begin with `indent`.
 *
 * @param first - what the first line begins with; it counts.
 */
export function wrapText(text: string, width: number, first: string, indent: string): string[] {
  const lines: string[] = [];
  let line = first;
  let isEmpty = true;
  for (const word of text.split(/\s+/)) {
    if (!isEmpty && line.length + 1 + word.length > width) {
      lines.push(line);
      line = indent;
      isEmpty = true;
    }
    line += isEmpty ? word : ` ${word}`;
    isEmpty = false;
  }
  return [...lines, line].map((one) => one.trimEnd());
}

/** Rows of cells as lines with aligned columns, two spaces between. */
export function alignColumns(rows: readonly (readonly string[])[], rightAligned: readonly number[] = []): string[] {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, column) => (widths[column] = Math.max(widths[column] ?? 0, cell.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (rightAligned.includes(column) ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
}
