import Table from 'cli-table3';
import { formatBytes, summarizePlan } from '@moe-server/core';
import type { Plan, PlanSummaryRow } from '@moe-server/core';

/**
 * The plan for the start's terminal: one line per kind, scheme and kernel.
 *
 * @param width - columns; longer lines lose their end. Undefined = as long as they are.
 */
export function planLines(plan: Plan, width: number | undefined): string[] {
  const rows = summarizePlan(plan).map((row) => [
    `${String(row.numLayers)} ×`,
    kindOf(row),
    row.scheme,
    row.backend === undefined ? 'not served' : `${row.backend} (${row.rule ?? ''})`,
    row.numerics ?? '',
    row.because,
  ]);
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) => {
    const line = row
      .map((cell, column) => align(cell, column < row.length - 1 ? (widths[column] ?? 0) : 0, column))
      .join('  ')
      .trimEnd();
    return width !== undefined && line.length > width ? `${line.slice(0, Math.max(0, width - 1))}…` : line;
  });
}

/** Counts to the right, the rest to the left. */
function align(cell: string, width: number, column: number): string {
  return column === 0 ? cell.padStart(width) : cell.padEnd(width);
}

/** The plan as a table, for `moe-server plan`. */
export function planTable(plan: Plan): string {
  const table = new Table({
    head: ['layers', 'kind', 'scheme', 'kernel', 'numerics', 'bytes', 'because'],
    style: { head: [], border: [] },
    wordWrap: true,
    colWidths: [null, null, null, null, null, null, 60],
  });
  for (const row of summarizePlan(plan)) {
    table.push([
      layersOf(row),
      kindOf(row),
      row.scheme,
      row.backend === undefined ? 'not served' : `${row.backend}\n${row.rule ?? ''}${row.built ? '' : '\n(not built)'}`,
      row.numerics ?? '',
      formatBytes(row.residentBytes),
      row.because,
    ]);
  }
  return table.toString();
}

/** Every refusal, rule by rule, of the first layer of each group: the others of a group are refused for the same reasons. */
export function refusalLines(plan: Plan): string[] {
  const lines: string[] = [];
  const byName = new Map(plan.layers.map((layer) => [layer.name, layer]));
  for (const row of summarizePlan(plan)) {
    const layer = byName.get(row.firstLayer);
    if (layer === undefined) continue;
    lines.push(`${layersOf(row).replaceAll('\n', ' ')} ${kindOf(row)} ${row.scheme}`);
    for (const { backend, rule, because } of layer.eligible) lines.push(`  could too   ${backend}/${rule}: ${because}`);
    for (const { backend, rule, reasons } of layer.refused) {
      lines.push(`  refused     ${backend}/${rule}: ${reasons.map(({ message }) => message).join(' ')}`);
    }
  }
  return lines;
}

function kindOf({ kind, role }: PlanSummaryRow): string {
  return `${role === 'draft' ? 'draft ' : ''}${kind === 'moe' ? 'experts' : 'linear'}`;
}

function layersOf({ numLayers, firstLayer, lastLayer }: PlanSummaryRow): string {
  return numLayers === 1 ? firstLayer : `${String(numLayers)}: ${firstLayer}\n… ${lastLayer}`;
}
