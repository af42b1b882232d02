/**
 * Bands for `priority` of a backend, so that backends which know nothing of each other fall into a sensible order until somebody has measured.
 * Within a band, ten points and less are for telling one's own rules apart. A plugin that is meant to outrank the built-in ones goes above
 * `specialized`.
 */
export const priorityBands = {
  /** One source for many devices. */
  portable: 100,
  /** Written for the matrix instructions of a few devices. */
  tuned: 200,
  /** Written for one scheme on one device. */
  specialized: 300,
} as const;
