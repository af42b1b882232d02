import { expect } from 'chai';
import { resolveKvCacheDType } from '../src/kv-cache.js';

describe('resolveKvCacheDType', () => {
  it('follows the checkpoint unless somebody chooses', () => {
    expect(resolveKvCacheDType('auto', 'fp8')).to.equal('f8e4m3');
    expect(resolveKvCacheDType('auto', 'none')).to.equal('bf16');
    expect(resolveKvCacheDType('auto', 'nvfp4')).to.equal('bf16');
    expect(resolveKvCacheDType('bf16', 'fp8')).to.equal('bf16');
    expect(resolveKvCacheDType('fp8', 'none')).to.equal('f8e4m3');
  });
});
