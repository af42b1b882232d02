/** Places begin on a cache line, so that any element type can be laid over them. */
const alignment = 64;

/**
 * Memory that one reader uses again and again. A load reads a model expert by expert; memory of its own for each would be cleared by the system and
 * collected by the garbage collector, which together take longer than reading. What was read is valid until {@link clear}.
 */
export class ReadBuffer {
  #memory = new ArrayBuffer(0);
  #used = 0;

  /** Bytes that it holds on to. */
  get byteLength(): number {
    return this.#memory.byteLength;
  }

  /** Begins anew: what was taken before may be overwritten by what is taken now. */
  clear(): void {
    if (this.#used > this.#memory.byteLength) this.#memory = new ArrayBuffer(this.#used);
    this.#used = 0;
  }

  /**
   * Memory for `length` bytes, with any content. What does not fit any more gets memory of its own, and fits from the next {@link clear} on.
   *
   * @param phase - the place is as far from a cache line as this number: bytes that are aligned in a file are aligned here.
   */
  take(length: number, phase = 0): Uint8Array<ArrayBuffer> {
    const offset = Math.ceil(this.#used / alignment) * alignment + (phase % alignment);
    this.#used = offset + length;
    if (this.#used <= this.#memory.byteLength) return new Uint8Array(this.#memory, offset, length);
    return new Uint8Array(new ArrayBuffer((phase % alignment) + length), phase % alignment, length);
  }
}
