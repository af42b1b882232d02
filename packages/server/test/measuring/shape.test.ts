import { expect } from 'chai';
import { parseShape } from '../../src/measuring/shape.js';

describe('parseShape', () => {
  it('reads hidden size, inner size, experts and experts per token', () => {
    expect(parseShape('2048,768,128,8')).to.deep.equal({ hiddenSize: 2048, moeIntermediateSize: 768, numExperts: 128, topK: 8 });
  });

  for (const text of ['', '2048', '2048,768,128', '2048,768,128,8,1', '2048,768,128,x', '2048,768,0,0', '2048,768,4,8', '2048,7.5,4,2']) {
    it(`refuses "${text}", saying what it takes`, () => {
      expect(() => parseShape(text))
        .to.throw(/--shape 2048,768,128,8; got/)
        .with.property('code', 'MOE_USAGE');
    });
  }
});
