import { ruleName } from '@moe-server/core';
import type { ClassFigures, KernelFigure } from '../measuring/kernel-figures.js';

const headings = ['tokens', 'time', 'GB/s', 'Gop/s', 'floor', 'of floor'] as const;
const widths = [8, 12, 9, 9, 12, 10] as const;

/** One block of lines per class of layers. `~` marks times that were not taken but scaled from a smaller call. */
export function kernelLines({ layer, scheme, sizes, numLayers, figures }: ClassFigures): string[] {
  const name = Math.max(6, ...figures.map((figure) => ruleName(figure).length)) + 2;
  const row = (first: string, cells: readonly string[], last: string): string =>
    `  ${first.padEnd(name)}${cells.map((cell, i) => cell.padStart(widths[i] ?? 0)).join('')}${last === '' ? '' : `  ${last}`}`;
  return [
    `${numLayers === 1 ? layer : `${String(numLayers)} like ${layer}`}: ${layer.includes(scheme) ? '' : `${scheme}, `}${sizes}`,
    row('kernel', headings, ''),
    ...figures.map((figure) => row(ruleName(figure), cellsOf(figure), figure.boundBy === 'memory' ? 'memory' : `${figure.dots} products`)),
  ];
}

function cellsOf({ numTokens, medianUs, bandwidth, rate, floorUs, ofFloor, isEstimate }: KernelFigure): string[] {
  return [
    String(numTokens),
    `${isEstimate ? '~' : ''}${timeText(medianUs)}`,
    bandwidth.toFixed(1),
    rate.toFixed(0),
    timeText(floorUs),
    `${(100 * ofFloor).toFixed(0)} %`,
  ];
}

/** Three digits: `12.3 µs`, `1.23 ms`, `2.10 s`. */
function timeText(us: number): string {
  const [value, unit] = us < 1e3 ? [us, 'µs'] : us < 1e6 ? [us / 1e3, 'ms'] : [us / 1e6, 's'];
  return `${value.toPrecision(3)} ${unit}`.replace(/^(\d+)\.? /, '$1 ');
}
