import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { requestError } from '../openai/errors.js';

/**
 * Guards routes with bearer keys. Keeps only digests; compares all of them in constant time, so that neither a key's length nor
 * a shared prefix shows in the answer time.
 */
export class ApiKeys {
  private readonly digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.digests = keys.map(digest);
  }

  /** False: every caller is let through. */
  get isRequired(): boolean {
    return this.digests.length > 0;
  }

  /**
   * Reads `Authorization: Bearer KEY` or `x-api-key: KEY`.
   *
   * @throws {MoeError} status 401 when a key is required and none of them is right.
   */
  check(headers: IncomingHttpHeaders): void {
    if (!this.isRequired) return;
    const key = /^bearer +(\S+) *$/i.exec(headers.authorization ?? '')?.[1] ?? headers['x-api-key'];
    const offered = typeof key === 'string' && key !== '' ? key : undefined;
    if (offered !== undefined && this.has(offered)) return;
    const message =
      offered === undefined
        ? 'This server needs an API key: send it as "Authorization: Bearer KEY".'
        : 'The API key is not one of this server.';
    throw requestError(message, { status: 401, wireCode: 'invalid_api_key', headers: { 'www-authenticate': 'Bearer' } });
  }

  private has(key: string): boolean {
    const offered = digest(key);
    let isKnown = false;
    for (const known of this.digests) isKnown = timingSafeEqual(known, offered) || isKnown;
    return isKnown;
  }
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}
