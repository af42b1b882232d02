import type { DeviceInfo, SupportRule } from '@moe-server/core';
import { deriveNumerics, priorityBands, schemeInfo } from '@moe-server/core';
import type { TritonScheme } from './support.js';

/**
 * Portable kernels come after tuned ones, except where they were measured to be faster:
 *
 * - BF16: 28 us against 61 of CUTLASS's grouped products at one token on an H100 (256 experts of 512, torch 2.11), and 4 % more requests on an
 *   H200 (vLLM #44220).
 * - MXFP4 between SM 9.0 and 10.x: vLLM's order puts Triton before CUTLASS there (August 2026), whose kernel also gave wrong answers on SM 9.0
 *   (FlashInfer #3334); on 12.x CUTLASS gains 28 % in prefill (vLLM #37751).
 *
 * @param scheme - of the weights; of w13 for experts.
 */
export function priorityOf(scheme: string, rule: SupportRule<TritonScheme>, device: DeviceInfo): number {
  const sm = device.type === 'cuda' ? device.sm : 0;
  if (scheme === 'bf16' || (scheme === 'mxfp4.w4a16' && sm >= 90 && sm < 110)) return priorityBands.tuned + 10;
  const info = schemeInfo(scheme);
  const isSame = info !== undefined && deriveNumerics(info, rule.arithmetic) === 'same';
  return priorityBands.portable - (isSame ? 0 : 10);
}
