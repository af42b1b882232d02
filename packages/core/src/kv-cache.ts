/** How keys and values are stored. `f8e4m3`: as e4m3(x / scale). */
export type KvCacheDType = 'bf16' | 'f8e4m3';

/** Those that lose more than the arithmetic around them does. */
export type QuantizedKvCacheDType = Exclude<KvCacheDType, 'bf16'>;

/** What a person can ask for. */
export type KvCacheChoice = 'auto' | 'bf16' | 'fp8';

/** What a checkpoint was calibrated for, by its quantization config. */
export type KvCacheScheme = 'none' | 'fp8' | 'nvfp4';

/**
 * `auto` follows the checkpoint: FP8 where it was calibrated for that, else bfloat16. NVFP4 caches are not supported; a checkpoint
 * that asks for one gets bfloat16, which loses nothing.
 */
export function resolveKvCacheDType(choice: KvCacheChoice, scheme: KvCacheScheme): KvCacheDType {
  if (choice === 'auto') return scheme === 'fp8' ? 'f8e4m3' : 'bf16';
  return choice === 'fp8' ? 'f8e4m3' : 'bf16';
}
