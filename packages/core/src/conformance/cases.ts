import type { RoutingPattern } from './layers.js';

/** The shape of the layer that a case runs on; which sizes that means is the rule's to say. */
export type LayerVariant = 'usual' | 'smallest' | 'odd-multiples' | 'subset';

/** A call whose result is compared with the reference. */
export interface ExpertsCase {
  readonly id: string;
  /** What a backend that passes does. */
  readonly title: string;
  readonly variant: LayerVariant;
  /** Calls, by number of tokens; counts that the rule does not serve are moved into its interval. */
  readonly numTokens: readonly number[];
  readonly routing: RoutingPattern;
  readonly accumulate: boolean;
}

/** Every rule, scheme and device runs all of these. Ids are stable: skips and support matrices name them. */
export const expertsCases: readonly ExpertsCase[] = [
  { id: 'one-token', title: 'computes one token', variant: 'usual', numTokens: [1], routing: 'spread', accumulate: false },
  {
    id: 'odd-tokens',
    title: 'computes odd numbers of tokens',
    variant: 'usual',
    numTokens: [3, 5, 17, 33],
    routing: 'spread',
    accumulate: false,
  },
  { id: 'many-tokens', title: 'computes many tokens', variant: 'usual', numTokens: [130], routing: 'spread', accumulate: false },
  {
    id: 'empty-experts',
    title: 'leaves out experts that no token chose',
    variant: 'usual',
    numTokens: [9],
    routing: 'few',
    accumulate: false,
  },
  {
    id: 'one-expert',
    title: 'computes all tokens on one expert',
    variant: 'usual',
    numTokens: [19],
    routing: 'one-expert',
    accumulate: false,
  },
  {
    id: 'foreign-slots',
    title: 'skips slots of -1 and writes zeros to rows that have no other',
    variant: 'usual',
    numTokens: [11],
    routing: 'partly-foreign',
    accumulate: false,
  },
  {
    id: 'all-foreign',
    title: 'writes zeros when every slot is -1',
    variant: 'usual',
    numTokens: [5],
    routing: 'all-foreign',
    accumulate: false,
  },
  {
    id: 'duplicates',
    title: 'adds an expert as often as a token lists it',
    variant: 'usual',
    numTokens: [6],
    routing: 'duplicates',
    accumulate: false,
  },
  { id: 'accumulate', title: 'adds to the output when told to', variant: 'usual', numTokens: [8], routing: 'spread', accumulate: true },
  {
    id: 'accumulate-foreign',
    title: 'leaves rows without experts as they are when adding',
    variant: 'usual',
    numTokens: [11],
    routing: 'partly-foreign',
    accumulate: true,
  },
  {
    id: 'subset',
    title: 'takes slots, not global ids, in a group that is part of a layer',
    variant: 'subset',
    numTokens: [7],
    routing: 'partly-foreign',
    accumulate: true,
  },
  {
    id: 'smallest-sizes',
    title: 'computes the smallest sizes that its rule allows',
    variant: 'smallest',
    numTokens: [5],
    routing: 'spread',
    accumulate: false,
  },
  {
    id: 'odd-multiples',
    title: 'computes sizes that are odd multiples of what its rule asks',
    variant: 'odd-multiples',
    numTokens: [6],
    routing: 'spread',
    accumulate: false,
  },
];

/** Run once per activation, bias and mixture of schemes that a rule lists beside its first. */
export const variationCases: readonly ExpertsCase[] = [
  { id: 'variation', title: 'computes a batch', variant: 'usual', numTokens: [1, 14], routing: 'spread', accumulate: false },
  {
    id: 'variation-foreign',
    title: 'adds to the output and skips slots of -1',
    variant: 'usual',
    numTokens: [10],
    routing: 'partly-foreign',
    accumulate: true,
  },
];

export interface LinearCase {
  readonly id: string;
  readonly title: string;
  readonly variant: 'usual' | 'smallest' | 'odd-multiples' | 'fused';
  readonly numTokens: readonly number[];
  readonly accumulate: boolean;
}

export const linearCases: readonly LinearCase[] = [
  { id: 'one-token', title: 'computes one token', variant: 'usual', numTokens: [1], accumulate: false },
  { id: 'odd-tokens', title: 'computes odd numbers of tokens', variant: 'usual', numTokens: [3, 5, 17, 33], accumulate: false },
  { id: 'many-tokens', title: 'computes many tokens', variant: 'usual', numTokens: [130], accumulate: false },
  { id: 'accumulate', title: 'adds to the output when told to', variant: 'usual', numTokens: [7], accumulate: true },
  {
    id: 'fused',
    title: 'keeps the scales of each fused module, input scales included',
    variant: 'fused',
    numTokens: [1, 9],
    accumulate: false,
  },
  {
    id: 'smallest-sizes',
    title: 'computes the smallest sizes that its rule allows',
    variant: 'smallest',
    numTokens: [5],
    accumulate: false,
  },
  {
    id: 'odd-multiples',
    title: 'computes sizes that are odd multiples of what its rule asks',
    variant: 'odd-multiples',
    numTokens: [6],
    accumulate: false,
  },
];

/** What a kernel and its packed weights must be like, whatever they compute. `promise`: only for rules that state it. */
export const qualityCases = [
  { id: 'nan-rows', title: 'keeps NaN and infinity within their rows' },
  { id: 'batch-invariant', title: 'gives a row the same bits alone and in a batch' },
  { id: 'repeatable', title: 'gives the same bits when called twice' },
  { id: 'unpack', title: 'gives the weights back bit for bit' },
  { id: 'storage', title: 'comes back from a file the same, and gives way when the file is damaged' },
  { id: 'brand', title: 'brands what it packs with its schemes and its layout' },
  { id: 'footprint', title: 'states the bytes that it takes, within 5 %' },
  { id: 'dispose', title: 'survives the disposal of another kernel on the same weights' },
] as const;

export type QualityCaseId = (typeof qualityCases)[number]['id'];
