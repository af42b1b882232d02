import { SCHEME } from '../quant/quant-scheme.js';
import type { QualityCaseId } from './cases.js';
import { expectClose, expectSameBits, expectThat } from './comparison.js';
import { inputQuantizationOf } from '../reference/reference-input.js';
import { runSubject, selectTokens } from './subject.js';
import type { Subject, SubjectCall } from './subject.js';

/** What a quality case is given beside the subject. */
export interface QualityInputs {
  /** A call of that many tokens, every token with experts of the group. */
  readonly makeCall: (numTokens: number) => SubjectCall;
  /** Token counts that the rule serves: each is moved into its interval. */
  readonly clampTokens: (numTokens: number) => number;
}

/** Every case as a function that throws where the backend fails it. */
export const qualityChecks: Readonly<Record<QualityCaseId, (subject: Subject, inputs: QualityInputs) => Promise<void>>> = {
  'nan-rows': async (subject, { makeCall, clampTokens }) => {
    const call = makeCall(clampTokens(9));
    const { inputWidth, outputWidth } = subject;
    const spoiled = { ...call, rows: call.rows.slice(), topkSlots: call.topkSlots.slice() };
    const bad = [2, 5, 7].filter((token) => token < call.numTokens);
    for (const token of bad) {
      const row = spoiled.rows.subarray(token * inputWidth, (token + 1) * inputWidth);
      if (token === 2) row.fill(NaN);
      else row[inputWidth >> 1] = token === 5 ? Infinity : NaN;
    }
    // A row of NaN that chose no expert of the group must not become NaN: 0 * NaN is not "skipped".
    spoiled.topkSlots.fill(-1, 2 * call.topK, 3 * call.topK);
    const output = await runSubject(subject, spoiled);
    const healthy = Array.from({ length: call.numTokens }, (_, token) => token).filter((token) => !bad.includes(token));
    const clean = selectTokens(call, inputWidth, healthy);
    const rows = healthy.flatMap((token) => [...output.subarray(token * outputWidth, (token + 1) * outputWidth)]);
    expectClose(
      rows,
      subject.reference(clean),
      outputWidth,
      subject.tolerance(clean),
      `${subject.context}: rows beside rows of NaN and infinity`,
    );
    if (call.topK > 0 && bad.includes(2)) {
      expectSameBits(
        output.subarray(2 * outputWidth, 3 * outputWidth),
        new Float32Array(outputWidth),
        `${subject.context}: a row of NaN without experts`,
      );
    }
  },

  'batch-invariant': async (subject, { makeCall, clampTokens }) => {
    const call = makeCall(clampTokens(37));
    const { outputWidth } = subject;
    const rowOf = (output: Float32Array, row: number): Float32Array => output.subarray(row * outputWidth, (row + 1) * outputWidth);
    const batch = await runSubject(subject, call);
    const reversed = Array.from({ length: call.numTokens }, (_, i) => call.numTokens - 1 - i);
    const subsets = [
      reversed,
      reversed.slice(0, clampTokens(5)),
      ...[0, 1, 18, 36].filter((token) => token < call.numTokens).map((token) => [token]),
    ];
    for (const tokens of subsets) {
      if (clampTokens(tokens.length) !== tokens.length) continue;
      const part = await runSubject(subject, selectTokens(call, subject.inputWidth, tokens));
      tokens.forEach((token, row) => {
        expectSameBits(
          rowOf(part, row),
          rowOf(batch, token),
          `${subject.context}: token ${String(token)} of ${String(call.numTokens)}, run with ${String(tokens.length)} tokens`,
        );
      });
    }
  },

  repeatable: async (subject, { makeCall, clampTokens }) => {
    const call = makeCall(clampTokens(23));
    const first = await runSubject(subject, call);
    // Another call in between, so that whatever a workspace or a cache keeps is from elsewhere.
    await runSubject(subject, makeCall(clampTokens(4)));
    expectSameBits(await runSubject(subject, call), first, `${subject.context}: the second of two equal calls`);
  },

  unpack: (subject) => {
    subject.expectUnpacked();
    return Promise.resolve();
  },

  storage: async (subject, { makeCall, clampTokens }) => {
    const { context, stored } = subject;
    if (stored === undefined) return;
    const call = makeCall(clampTokens(7));
    const packed = await stored.copy();
    expectThat(
      packed.layout === subject.packed.layout && JSON.stringify(packed[SCHEME]) === JSON.stringify(subject.packed[SCHEME]),
      `${context}: restored weights are ${JSON.stringify(packed[SCHEME])} in layout "${packed.layout}", unlike those that were saved.`,
    );
    expectThat(
      packed.residentBytes === subject.packed.residentBytes,
      `${context}: restored weights say ${String(packed.residentBytes)} resident bytes, those that were saved ${String(subject.packed.residentBytes)}.`,
    );
    subject.expectUnpacked(packed);
    const kernel = await subject.createKernel(packed);
    const expected = await runSubject(subject, call);
    expectSameBits(await runSubject(subject, call, undefined, kernel), expected, `${context}: a kernel on restored weights`);
    kernel.dispose();
    packed.dispose();
    expectSameBits(
      await runSubject(subject, call),
      expected,
      `${context}: the kernel on the weights that were saved, after the others were disposed`,
    );
    const damage = new Error('the file is damaged');
    const thrown = await stored.copy(damage).catch((error: unknown) => error);
    expectThat(thrown === damage, `${context}: when filling is rejected, restoring must reject with the same; it gives ${String(thrown)}.`);
  },

  brand: (subject) => {
    const brand = subject.packed[SCHEME] as unknown;
    const schemes = [...new Set(subject.schemes)].sort();
    expectThat(
      Array.isArray(brand) && JSON.stringify([...new Set(brand)].sort()) === JSON.stringify(schemes),
      `${subject.context}: packed weights are branded ${JSON.stringify(brand)}, expected ${JSON.stringify(schemes)}.`,
    );
    expectThat(
      subject.packed.layout === subject.layout,
      `${subject.context}: packed weights say layout "${subject.packed.layout}", the rule says "${subject.layout}".`,
    );
    return Promise.resolve();
  },

  footprint: (subject) => {
    const { context, footprint, packed, kernel, codeBytes } = subject;
    const resident = packed.residentBytes;
    expectThat(
      Math.abs(footprint.residentBytes - resident) <= 0.05 * resident,
      `${context}: the footprint says ${String(footprint.residentBytes)} resident bytes, the packed weights take ${String(resident)}.`,
    );
    // Both figures are the backend's own. The codes are random: no layout holds them in less.
    expectThat(
      resident >= codeBytes,
      `${context}: the packed weights say ${String(resident)} bytes, but the codes alone are ${String(codeBytes)} and cannot be compressed.`,
    );
    for (const numTokens of [1, subject.maxNumTokens]) {
      const promised = footprint.workspaceBytes(numTokens);
      const taken = kernel.workspaceBytes(numTokens);
      expectThat(
        taken <= promised,
        `${context}: a call with ${String(numTokens)} tokens takes ${String(taken)} workspace bytes, the footprint says ${String(promised)}.`,
      );
    }
    return Promise.resolve();
  },

  dispose: async (subject, { makeCall, clampTokens }) => {
    const call = makeCall(clampTokens(3));
    const before = await runSubject(subject, call);
    const other = await subject.createKernel();
    expectSameBits(await runSubject(subject, call, undefined, other), before, `${subject.context}: a second kernel on the same weights`);
    other.dispose();
    expectSameBits(await runSubject(subject, call), before, `${subject.context}: the first kernel after the second was disposed`);
  },
};

/** Why a quality case says nothing about a rule; undefined when it does. */
export function qualityExemption(
  id: QualityCaseId,
  rule: { readonly batchInvariant?: boolean; readonly arithmetic: Subject['arithmetic'] },
  scheme: string,
  isStorable: boolean,
): string | undefined {
  if (id === 'storage' && !isStorable) return 'the backend does not store packed weights';
  if (id === 'batch-invariant' && rule.batchInvariant !== true) return 'the rule does not claim it';
  if (id === 'nan-rows') {
    const quantization = inputQuantizationOf(rule.arithmetic.input, scheme);
    if (quantization.type === 'fp8' && quantization.granularity === 'tensor' && quantization.scale === 'dynamic') {
      return 'one scale for the whole tensor joins its rows';
    }
  }
  return undefined;
}
