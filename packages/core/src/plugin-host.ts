import type { LinearBackend, MoeBackend } from './backend.js';
import type { SchemeKey } from './quant/quant-scheme.js';

/** What a plugin's `apply` is given. */
export interface PluginHost {
  readonly addMoeBackend: <S extends SchemeKey>(backend: MoeBackend<S>) => void;
  readonly addLinearBackend: <S extends SchemeKey>(backend: LinearBackend<S>) => void;
}
