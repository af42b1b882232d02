import { expect } from 'chai';
import fc from 'fast-check';
import type { PrefixNode } from '../src/block-manager.js';
import { BlockManager, sha256BlockHash } from '../src/block-manager.js';

const blockSize = 4;
const tokens = (length: number, first = 0): number[] => Array.from({ length }, (_, i) => first + i);

function manager(numBlocks: number, hash = sha256BlockHash): BlockManager {
  return new BlockManager({ numBlocks, blockSize, hash });
}

/** Allocates, caches every full block and frees: what a whole life of a sequence leaves behind. */
function leaveBehind(blocks: BlockManager, tokenIds: readonly number[]): number[] {
  const table: number[] = [];
  const prefix: PrefixNode[] = [];
  blocks.extendPrefix(prefix, tokenIds);
  const found = blocks.findPrefix(prefix, prefix.length);
  expect(blocks.allocate(table, found, blocks.blocksFor(tokenIds.length))).to.equal(true);
  prefix.forEach((node, i) => {
    blocks.cache(table[i] ?? -1, node);
  });
  const kept = [...table];
  blocks.free(table);
  return kept;
}

function find(blocks: BlockManager, tokenIds: readonly number[], maxBlocks = Infinity): number[] {
  const prefix: PrefixNode[] = [];
  blocks.extendPrefix(prefix, tokenIds);
  return blocks.findPrefix(prefix, maxBlocks);
}

describe('BlockManager', () => {
  describe('#allocate', () => {
    it('hands out every block once and then no more', () => {
      const blocks = manager(3);
      const table: number[] = [];
      expect(blocks.allocate(table, [], 3)).to.equal(true);
      expect([...table].sort()).to.deep.equal([0, 1, 2]);
      expect(blocks.usage).to.equal(1);
      expect(blocks.allocate([], [], 1)).to.equal(false);
    });

    it('changes nothing when there are not enough blocks', () => {
      const blocks = manager(3);
      const table: number[] = [];
      expect(blocks.allocate(table, [], 3, 1)).to.equal(false);
      expect(table).to.deep.equal([]);
      expect(blocks.numFreeBlocks).to.equal(3);
    });

    it('reuses cached prefix blocks without copying', () => {
      const blocks = manager(8);
      const kept = leaveBehind(blocks, tokens(10));
      const table: number[] = [];
      expect(blocks.allocate(table, find(blocks, tokens(12)), 3)).to.equal(true);
      expect(table.slice(0, 2)).to.deep.equal(kept.slice(0, 2));
      expect(blocks.numFreeBlocks).to.equal(5);
    });

    it('counts a cached block that nobody uses as one it has to take', () => {
      const blocks = manager(2);
      leaveBehind(blocks, tokens(8));
      const cached = find(blocks, tokens(8));
      expect(cached).to.have.length(2);
      expect(blocks.allocate([], cached, 3)).to.equal(false);
      expect(blocks.allocate([], cached, 2)).to.equal(true);
      expect(blocks.numFreeBlocks).to.equal(0);
    });

    it('shares a block between sequences until the last one gives it back', () => {
      const blocks = manager(4);
      leaveBehind(blocks, tokens(4));
      const tables: number[][] = [[], []];
      for (const table of tables) blocks.allocate(table, find(blocks, tokens(4)), 2);
      const shared = tables[0]?.[0] ?? -1;
      expect(blocks.refCount(shared)).to.equal(2);
      blocks.free(tables[0] ?? []);
      expect(blocks.refCount(shared)).to.equal(1);
      expect(blocks.numFreeBlocks).to.equal(2);
      blocks.free(tables[1] ?? []);
      expect(blocks.numFreeBlocks).to.equal(4);
    });
  });

  describe('#findPrefix', () => {
    it('never finds a block that is not full', () => {
      const blocks = manager(8);
      leaveBehind(blocks, tokens(7));
      expect(find(blocks, tokens(7))).to.have.length(1);
    });

    it('stops at the first block that differs', () => {
      const blocks = manager(8);
      leaveBehind(blocks, tokens(12));
      expect(find(blocks, [...tokens(4), 99, ...tokens(7, 5)])).to.have.length(1);
    });

    it('does not find equal tokens behind another beginning', () => {
      const blocks = manager(8);
      leaveBehind(blocks, [...tokens(4), ...tokens(4, 100)]);
      expect(find(blocks, tokens(4, 100))).to.deep.equal([]);
    });

    it('gives at most as many blocks as asked for', () => {
      const blocks = manager(8);
      leaveBehind(blocks, tokens(12));
      expect(find(blocks, tokens(12), 2)).to.have.length(2);
    });

    it('finds nothing when prefix caching is off', () => {
      const blocks = new BlockManager({ numBlocks: 4, blockSize, enablePrefixCaching: false });
      leaveBehind(blocks, tokens(8));
      expect(find(blocks, tokens(8))).to.deep.equal([]);
      expect(blocks.numCachedBlocks).to.equal(0);
    });

    it('is not deceived by a hash that always collides', () => {
      const blocks = manager(8, () => 'same');
      leaveBehind(blocks, tokens(8));
      expect(find(blocks, tokens(4, 50))).to.deep.equal([]);
      expect(find(blocks, tokens(4))).to.have.length(1);
    });

    it('is not deceived by a hash that forgets what came before', () => {
      const blocks = manager(8, (_, tokenIds) => tokenIds.join());
      leaveBehind(blocks, [...tokens(4), ...tokens(4, 100)]);
      leaveBehind(blocks, tokens(4, 200));
      expect(find(blocks, [...tokens(4, 200), ...tokens(4, 100)])).to.have.length(1);
    });

    it('follows a chain whose blocks were computed by different sequences', () => {
      const blocks = manager(8);
      const [first, second] = [[], []] as [PrefixNode[], PrefixNode[]];
      blocks.extendPrefix(first, tokens(4));
      blocks.extendPrefix(second, tokens(8));
      const table: number[] = [];
      blocks.allocate(table, [], 2);
      for (const [i, node] of [first[0], second[1]].entries()) if (node !== undefined) blocks.cache(table[i] ?? -1, node);
      expect(find(blocks, tokens(8))).to.deep.equal(table);
    });
  });

  describe('#free', () => {
    it('keeps what is cached until blocks without contents are used up, then forgets the oldest first', () => {
      const blocks = manager(6);
      leaveBehind(blocks, tokens(4));
      leaveBehind(blocks, tokens(4, 100));
      blocks.allocate([], [], 4);
      expect(blocks.numCachedBlocks).to.equal(2);
      blocks.allocate([], [], 1);
      expect(find(blocks, tokens(4))).to.have.length(0);
      expect(find(blocks, tokens(4, 100))).to.have.length(1);
    });

    it('forgets the end of a prefix before its beginning', () => {
      const blocks = manager(3);
      leaveBehind(blocks, tokens(12));
      blocks.allocate([], [], 1);
      expect(find(blocks, tokens(12))).to.have.length(2);
    });

    it('refuses a block that is freed twice', () => {
      const blocks = manager(2);
      expect(() => {
        blocks.free([0]);
      }).to.throw(RangeError, 'block 0');
    });
  });

  it('agrees with a naive model through any sequence of operations', () => {
    const command = fc.oneof(
      fc.record({ op: fc.constant('admit' as const), start: fc.integer({ min: 0, max: 2 }), length: fc.integer({ min: 1, max: 20 }) }),
      fc.record({ op: fc.constant('grow' as const), which: fc.nat(9), by: fc.integer({ min: 1, max: 2 }) }),
      fc.record({ op: fc.constant('free' as const), which: fc.nat(9) }),
    );
    const hashes = fc.constantFrom(
      sha256BlockHash,
      () => 'same',
      (_: string, ids: readonly number[]) => String((ids[0] ?? 0) % 3),
    );
    fc.assert(
      fc.property(fc.array(command, { maxLength: 60 }), fc.integer({ min: 1, max: 12 }), hashes, (commands, numBlocks, hash) => {
        const blocks = manager(numBlocks, hash);
        const live: { table: number[]; tokenIds: number[] }[] = [];
        // The truth about contents: what was last written to each block, as the text from position 0.
        const written = new Map<number, string>();
        const write = (table: readonly number[], tokenIds: readonly number[], from: number): void => {
          for (let i = from; i < table.length; i++) written.set(table[i] ?? -1, tokenIds.slice(0, (i + 1) * blockSize).join());
        };
        for (const step of commands) {
          if (step.op === 'admit') {
            const tokenIds = tokens(step.length, step.start * 100).map((id) => (id % 100 > 9 && step.length % 2 === 1 ? id + 1000 : id));
            const prefix: PrefixNode[] = [];
            blocks.extendPrefix(prefix, tokenIds);
            const found = blocks.findPrefix(prefix, Math.floor((tokenIds.length - 1) / blockSize));
            found.forEach((block, i) => expect(written.get(block)).to.equal(tokenIds.slice(0, (i + 1) * blockSize).join()));
            const table: number[] = [];
            const numFree = blocks.numFreeBlocks;
            if (blocks.allocate(table, found, blocks.blocksFor(tokenIds.length))) {
              write(table, tokenIds, found.length);
              prefix.forEach((node, i) => {
                blocks.cache(table[i] ?? -1, node);
              });
              live.push({ table, tokenIds });
            } else {
              expect(table).to.deep.equal([]);
              expect(blocks.numFreeBlocks).to.equal(numFree);
            }
          } else if (live.length > 0) {
            const index = step.which % live.length;
            const table = live[index]?.table ?? [];
            if (step.op === 'free') {
              blocks.free(table);
              live.splice(index, 1);
            } else {
              const before = table.length;
              if (blocks.grow(table, before + step.by)) for (const block of table.slice(before)) written.set(block, 'scratch');
              else expect(table).to.have.length(before);
            }
          }
          const counts = new Map<number, number>();
          for (const { table } of live) {
            expect(new Set(table).size).to.equal(table.length);
            for (const block of table) counts.set(block, (counts.get(block) ?? 0) + 1);
          }
          for (let block = 0; block < numBlocks; block++) expect(blocks.refCount(block)).to.equal(counts.get(block) ?? 0);
          expect(blocks.numFreeBlocks).to.equal(numBlocks - counts.size);
          expect(blocks.numCachedBlocks).to.be.at.most(numBlocks);
        }
        for (const { table } of live) blocks.free(table);
        expect(blocks.numFreeBlocks).to.equal(numBlocks);
        const all: number[] = [];
        expect(blocks.allocate(all, [], numBlocks)).to.equal(true);
        expect(new Set(all).size).to.equal(numBlocks);
      }),
      { numRuns: 200, seed: 20261126 },
    );
  });
});
