import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { messageOf, MoeError } from '@moe-server/core';
import type { MeasuredClass } from '@moe-server/core';
import type { CalibrationQuarantine, CalibrationResults } from '../calibration/calibration-file.js';
import type { CalibrationEnvironment } from '../calibration/environment.js';
import type { ClassWork, MeasuringCommand, MeasuringMessage, MeasuringSettings, Trial } from './protocol.js';

/** Whom to tell while it goes on; every member may be left out. */
export interface MeasuringObserver {
  /** What will be measured; once, also when a process dies and another goes on. */
  readonly onBegin?: (begun: Extract<MeasuringMessage, { type: 'begun' }>) => void;
  readonly onProgress?: (numDone: number, numMeasurements: number) => void;
  readonly onMeasured?: (measured: MeasuredClass, work: ClassWork) => void;
  /** A rule is out of the measurement. */
  readonly onFailed?: (trial: Trial, reason: string) => void;
}

export interface KernelTimes extends CalibrationResults {
  readonly environment: CalibrationEnvironment;
}

/** A process that has not said what it will do after this time never will. */
const loadLimitMs = 120_000;

/**
 * Times rules that cover a model's layers, in child processes. When one dies or hangs, the rule that ran is quarantined for that class of
 * layers, and another process measures the rest.
 *
 * @param entry - another entry file, for tests.
 * @throws {MoeError} what keeps it from measuring: checkpoint, plugins, memory; MOE_DEVICE_LOST when the process dies outside a kernel.
 */
export async function measureKernels(
  settings: MeasuringSettings,
  observer: MeasuringObserver = {},
  entry: URL = new URL('./measuring-process.js', import.meta.url),
): Promise<KernelTimes> {
  const classes: MeasuredClass[] = [];
  const quarantined: CalibrationQuarantine[] = [];
  const excluded: Trial[] = [];
  let environment: CalibrationEnvironment | undefined;
  let numDone = 0;
  let numMeasurements = 0;
  const exclude = (trial: Trial, reason: string, isKernelFault: boolean): void => {
    excluded.push(trial);
    const { kind, backend, rule, layerClass } = trial;
    if (isKernelFault) quarantined.push({ kind, backend, rule, layerClass, reason });
    observer.onFailed?.(trial, reason);
  };
  const receive = (message: MeasuringMessage): void => {
    switch (message.type) {
      case 'begun':
        if (environment === undefined) {
          numMeasurements = message.numMeasurements;
          observer.onBegin?.(message);
        }
        environment = message.environment;
        return;
      case 'progress':
        // What a process had done of a class before it died is done again.
        numDone = Math.min(numMeasurements, numDone + message.numMeasurements);
        observer.onProgress?.(numDone, numMeasurements);
        return;
      case 'failed-trial':
        exclude(message.trial, sentence('It failed', message.trial, message.reason, settings), message.isKernelFault);
        return;
      case 'measured':
        classes.push(message.measured);
        observer.onMeasured?.(message.measured, message.work);
        return;
      default:
        return;
    }
  };
  for (;;) {
    const command = { settings, done: classes.map(({ layerClass }) => layerClass), excluded };
    const death = await runProcess(entry, command, receive);
    if (death === undefined) break;
    exclude(death.trial, sentence(death.how, death.trial, death.doing, settings), true);
  }
  if (environment === undefined) throw new MoeError('MOE_INTERNAL', 'The process that measures ended without saying what it would do.');
  observer.onProgress?.(numMeasurements, numMeasurements);
  return { environment, classes, quarantined };
}

/** How a process died while a plugin's code ran. */
interface Death {
  readonly trial: Trial;
  readonly doing: string;
  /** The beginning of a sentence. */
  readonly how: string;
}

/** Runs one process to its end. @returns undefined when it did its work. */
function runProcess(entry: URL, command: MeasuringCommand, receive: (message: MeasuringMessage) => void): Promise<Death | undefined> {
  return new Promise((resolve, reject) => {
    const child: ChildProcess = fork(entry, [], {
      serialization: 'advanced',
      // What native code prints belongs to the log; standard output is for what the user asked for.
      stdio: ['ignore', process.stderr, process.stderr, 'ipc'],
      execArgv: process.execArgv.filter((arg) => !arg.startsWith('--inspect')),
    });
    let trying: { readonly trial: Trial; readonly doing: string } | undefined;
    let failure: MoeError | undefined;
    let isDone = false;
    let silentForMs: number | undefined;
    let timer: NodeJS.Timeout | undefined;
    const watch = (limitMs: number): void => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        silentForMs = limitMs;
        child.kill('SIGKILL');
      }, limitMs);
    };
    watch(loadLimitMs);
    child.on('message', (message: MeasuringMessage) => {
      watch(message.type === 'trying' ? message.limitMs : loadLimitMs);
      if (message.type === 'trying') trying = message;
      else if (message.type === 'failed') failure = MoeError.fromJSON(message.error);
      else if (message.type === 'done') isDone = true;
      // Between two classes no plugin's kernel is at work.
      if (message.type === 'measured') trying = undefined;
      receive(message);
    });
    child.once('error', (cause) => {
      clearTimeout(timer);
      reject(new MoeError('MOE_DEVICE_LOST', `The process that measures kernels cannot be used: ${messageOf(cause)}.`, {}, { cause }));
    });
    child.once('exit', (code, signal) => {
      clearTimeout(timer);
      const isHanging = silentForMs !== undefined;
      const how = isHanging ? `did not answer for ${String((silentForMs ?? 0) / 1000)} s` : (signal ?? `exit code ${String(code)}`);
      if (isDone) resolve(undefined);
      else if (failure !== undefined) reject(failure);
      else if (trying !== undefined) resolve({ ...trying, how: isHanging ? `It ${how} and was killed` : `It killed its process (${how})` });
      else reject(new MoeError('MOE_DEVICE_LOST', `The process that measures kernels died (${how}).`, { code, signal }));
    });
    child.send(command, () => undefined);
  });
}

function sentence(how: string, { layer }: Trial, doing: string, { selection }: MeasuringSettings): string {
  const command = selection.type === 'choices' ? 'calibrate' : 'bench';
  return `${how} when "moe-server ${command}" tried it on ${layer} ${doing} (${new Date().toISOString().slice(0, 10)})`;
}
