import { formatBytes, summarizePlan } from '@moe-server/core';
import type { LayerPlan, Plan, PlanSummaryRow } from '@moe-server/core';
import { refusalLines } from './refusal-text.js';
import { alignColumns, textWidth, wrapText } from './wrapped-text.js';

const indent = '    ';

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
  return alignColumns(rows, [0]).map((line) =>
    width !== undefined && line.length > width ? `${line.slice(0, Math.max(0, width - 1))}…` : line,
  );
}

export interface PlanTextOptions {
  /** Columns of the terminal; undefined = nobody watches. */
  readonly width: number | undefined;
  /** With the rules that were not chosen, and why. */
  readonly explain: boolean;
}

/**
 * The plan for `moe-server plan`: per kind, role and scheme one line for each choice of kernels, below it the layers and why, and with `explain`
 * what else would serve them and every refusal.
 */
export function planText(plan: Plan, { width, explain }: PlanTextOptions): string[] {
  const columns = textWidth(width);
  const rows = summarizePlan(plan);
  const [head = '', ...lines] = alignColumns(
    [['layers', 'kind', 'scheme', 'kernel', 'numerics', 'built', 'memory'], ...rows.map((row, index) => cellsOf(row, rows[index - 1]))],
    [0, 6],
  );
  const byName = new Map<string, LayerPlan>(plan.layers.map((layer) => [`${layer.kind} ${layer.name}`, layer]));
  return [
    head,
    ...rows.flatMap((row, index) => {
      const layer = byName.get(`${row.kind} ${row.firstLayer}`);
      return [
        lines[index] ?? '',
        ...wrapText(layersOf(row), columns, indent, indent),
        ...wrapText(row.backend === undefined ? `not served: ${row.because}` : row.because, columns, indent, indent),
        ...(explain && layer !== undefined ? ['', ...refusalLines(layer, columns, indent)] : []),
        ...(explain || index === rows.length - 1 ? [''] : []),
      ];
    }),
  ];
}

/** Kind and scheme are said once for all choices of a group. */
function cellsOf(row: PlanSummaryRow, before: PlanSummaryRow | undefined): string[] {
  const isSameGroup = before?.kind === row.kind && before.role === row.role && before.scheme === row.scheme;
  return [
    String(row.numLayers),
    isSameGroup ? '' : kindOf(row),
    isSameGroup ? '' : row.scheme,
    row.backend === undefined ? 'NOT SERVED' : `${row.backend}/${row.rule ?? ''}`,
    row.numerics ?? '',
    row.backend === undefined ? '' : row.built ? 'yes' : 'no',
    row.backend === undefined ? '' : formatBytes(row.residentBytes),
  ];
}

function kindOf({ kind, role }: PlanSummaryRow): string {
  return `${role === 'draft' ? 'draft ' : ''}${kind === 'moe' ? 'experts' : 'linear'}`;
}

function layersOf({ numLayers, firstLayer, lastLayer }: PlanSummaryRow): string {
  return numLayers === 1 ? firstLayer : numLayers === 2 ? `${firstLayer}, ${lastLayer}` : `${firstLayer} … ${lastLayer}`;
}
