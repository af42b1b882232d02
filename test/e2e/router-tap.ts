import type { Command, Device, Program, RouteCommand, StepInputs } from '@moe-server/engine';

/** What one router saw and chose in the last step. */
export interface Routed {
  /** [tokens, hiddenSize] */
  readonly input: Float32Array;
  /** [tokens, topK] */
  readonly topkIds: Int32Array;
}

/**
 * Looks into a running model: programs are cut after every route command, so that the buffers, which later layers reuse, can be copied in
 * between. The commands and their order stay the same.
 */
export class RouterTap {
  /** By layer, of the last step that ran. */
  routed: Routed[] = [];

  readonly wrap = (device: Device): Device => {
    const cuts = new WeakMap<Program, readonly Piece[]>();
    return {
      info: device.info,
      allocate: (byteLength, label) => device.allocate(byteLength, label),
      compile: (commands, layout) => {
        const pieces = cut(commands).map((piece) => ({ program: device.compile(piece, layout), last: piece.at(-1) }));
        const program = programOf(pieces);
        cuts.set(program, pieces);
        return program;
      },
      submit: async (program, inputs) => {
        const pieces = cuts.get(program) ?? [];
        // The sampling part of a step has no routers; what the forward pass left stays.
        if (pieces.some(({ last }) => last?.op === 'route')) this.routed = [];
        for (const { program: piece, last } of pieces) {
          await device.submit(piece, inputs);
          if (last?.op === 'route') this.routed.push(copy(last, inputs));
        }
      },
      get numExpertsChosen() {
        return device.numExpertsChosen;
      },
      /** Of its last piece. */
      get lastStep() {
        return device.lastStep;
      },
      dispose: () => {
        device.dispose();
      },
    };
  };
}

interface Piece {
  readonly program: Program;
  readonly last: Command | undefined;
}

function cut(commands: readonly Command[]): Command[][] {
  const pieces: Command[][] = [[]];
  for (const command of commands) {
    pieces.at(-1)?.push(command);
    if (command.op === 'route') pieces.push([]);
  }
  return pieces.filter((piece) => piece.length > 0);
}

function programOf(pieces: readonly Piece[]): Program {
  return {
    numCommands: pieces.reduce((sum, { program }) => sum + program.numCommands, 0),
    workspaceBytes: Math.max(...pieces.map(({ program }) => program.workspaceBytes)),
    dispose: () => {
      for (const { program } of pieces) program.dispose();
    },
  };
}

function copy({ input, topkIds, hiddenSize, topK }: RouteCommand, inputs: StepInputs): Routed {
  const numTokens = inputs.header[0] ?? 0;
  return {
    input: new Float32Array(input.buffer, input.byteOffset, numTokens * hiddenSize).slice(),
    topkIds: new Int32Array(topkIds.buffer, topkIds.byteOffset, numTokens * topK).slice(),
  };
}
