import { MoeError } from '@moe-server/core';
import type { PluginHost, Preference } from '@moe-server/core';
import { nearestWord } from './nearest-word.js';

/** Backends of the built-in plugins: known by name also where their package is not installed. */
const ownNames: readonly string[] = ['b12x', 'cpu', 'cutlass', 'triton'];

/**
 * Names that vLLM gives to kernel families which are plugins here. "List" is the set of values of `--moe-backend` in vLLM's `config/kernel.py`
 * (August 2026); dashes and underscores are the same there and here.
 */
const aliases: Readonly<Record<string, string>> = {
  // vLLM #40082: FlashInfer's b12x; the name of the flag that vLLM #43334 is about.
  flashinfer_b12x: 'b12x',
  // List; grouped GEMM of the CUTLASS family in FlashInfer's build.
  flashinfer_cutlass: 'cutlass',
  // The oracle's own name for what the list calls `cutlass`, as its log lines print it.
  vllm_cutlass: 'cutlass',
  // List; the same family over inputs sorted by expert, which is no choice of a backend here.
  batched_vllm_cutlass: 'cutlass',
  batched_triton: 'triton',
  // List, MXFP4; the variant of the family without a fused activation.
  triton_unfused: 'triton',
};

/**
 * Names that vLLM takes and no plugin of ours answers to; one that is installed under such a name wins. The values of `--moe-backend` (list as
 * above, and what error messages of its oracles offer), then of `--linear-backend`.
 */
const foreignNames: readonly string[] = [
  ...['aiter', 'aiter_mxfp4_bf16', 'aiter_mxfp4_fp8', 'aiter_mxfp4_mxfp4', 'aiter_triton_mxfp4_bf16'],
  ...['batched_deep_gemm', 'batched_marlin', 'deep_gemm', 'deep_gemm_mega_moe', 'emulation'],
  ...['flashinfer_cutedsl', 'flashinfer_cutedsl_batched', 'flashinfer_cutlass_afp8', 'flashinfer_trtllm', 'flashinfer_trtllm_afp8'],
  ...['flashinfer_moe_ep_mega_cutedsl', 'flashinfer_moe_ep_mega_deep_gemm', 'hpc', 'humming', 'marlin', 'moonep', 'rdna3', 'xpu'],
  ...['allspark', 'conch', 'exllama', 'fbgemm', 'flashinfer_cudnn', 'flashinfer_deep_gemm', 'machete', 'torch'],
];

/** Preferences by the names of installed backends, and a sentence for each name that was read as another. */
export interface ResolvedNames {
  readonly preferences: readonly Preference[];
  readonly notices: readonly string[];
}

/**
 * Reads other engines' names as ours, and refuses names that nobody knows: a misspelt one would silently do nothing. A known name without a
 * plugin stays: as a preference it falls through, as a requirement it leaves its layers unserved, and the plan says either.
 *
 * @throws {MoeError} MOE_USAGE listing the installed backends and the name that may have been meant.
 */
export function resolveBackendNames(
  preferences: readonly Preference[],
  host: Pick<PluginHost, 'moeBackends' | 'linearBackends'>,
): ResolvedNames {
  const installed = [...new Set([...host.moeBackends, ...host.linearBackends].map(({ name }) => name))].sort();
  const notices: string[] = [];
  const resolved = preferences.map((preference): Preference => {
    const { backend, effect, source } = preference;
    if (effect === 'auto' || installed.includes(backend)) return preference;
    const key = backend.toLowerCase().replaceAll('-', '_');
    const alias = Object.hasOwn(aliases, key) ? aliases[key] : installed.includes(key) || ownNames.includes(key) ? key : undefined;
    if (alias !== undefined) {
      if (alias !== backend) notices.push(`${source.text} (${source.type}): ${backend} was read as ${alias}.`);
      return { ...preference, backend: alias };
    }
    if (foreignNames.includes(key)) return preference;
    const meant = nearestWord(key, [...installed, ...ownNames, ...Object.keys(aliases), ...foreignNames]);
    const hint = meant === undefined ? '' : ` Did you mean ${meant}?`;
    throw new MoeError('MOE_USAGE', `${source.text}: there is no backend named ${backend}; installed are ${installed.join(', ')}.${hint}`, {
      backend,
      installed,
      source: source.type,
    });
  });
  return { preferences: resolved, notices: [...new Set(notices)] };
}

/** For documentation and its test: what is read as what, and what is known without a plugin. */
export const backendNames = { aliases, foreign: foreignNames } as const;
