import type { SupportRule } from '@moe-server/core';
import { deriveNumerics, priorityBands, schemeInfo } from '@moe-server/core';
import type { CutlassScheme } from './support.js';

/**
 * Tuned kernels come before portable ones, inputs as the checkpoint was calibrated for before 16-bit ones: half the bytes to move and at least twice the
 * products per second. Grouped FP8 is close to Triton's on SM 9.0 (CUTLASS block 457 against Triton 403 TFLOP/s on an H100: vLLM #23280; FlashInfer's
 * FP8 kernel 30 % slower on an H200: #33490), so measuring may turn this around.
 *
 * @param scheme - of the weights; of w13 for experts.
 */
export function priorityOf(scheme: string, rule: SupportRule<CutlassScheme>): number {
  const info = schemeInfo(scheme);
  const isSame = info !== undefined && deriveNumerics(info, rule.arithmetic) === 'same';
  return priorityBands.tuned - (isSame ? 0 : 10);
}
