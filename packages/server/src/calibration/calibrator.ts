import { fork } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { messageOf, MoeError } from '@moe-server/core';
import type { MeasuredClass } from '@moe-server/core';
import type { CalibrationQuarantine, CalibrationResults } from './calibration-file.js';
import type { CalibrationEnvironment } from './environment.js';
import type { CalibrationCommand, CalibrationMessage, CalibrationSettings, Trial } from './protocol.js';

/** Whom to tell while it goes on; every member may be left out. */
export interface CalibrationObserver {
  /** What will be measured; once, also when a process dies and another goes on. */
  readonly onBegin?: (begun: Extract<CalibrationMessage, { type: 'begun' }>) => void;
  readonly onProgress?: (numDone: number, numMeasurements: number) => void;
  readonly onMeasured?: (measured: MeasuredClass) => void;
  /** A rule is out of the measurement. */
  readonly onFailed?: (trial: Trial, reason: string) => void;
}

export interface Calibration extends CalibrationResults {
  readonly environment: CalibrationEnvironment;
}

/** A process that has not said what it will do after this time never will. */
const loadLimitMs = 120_000;

/**
 * Times the rules that cover a model's layers, in child processes. When one dies or hangs, the rule that ran is quarantined for that class of
 * layers, and another process measures the rest.
 *
 * @param entry - another entry file, for tests.
 * @throws {MoeError} what keeps it from measuring: checkpoint, plugins, memory; MOE_DEVICE_LOST when the process dies outside a kernel.
 */
export async function runCalibration(
  settings: CalibrationSettings,
  observer: CalibrationObserver = {},
  entry: URL = new URL('./calibration-process.js', import.meta.url),
): Promise<Calibration> {
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
  const receive = (message: CalibrationMessage): void => {
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
        exclude(message.trial, sentence('It failed', message.trial, message.reason), message.isKernelFault);
        return;
      case 'measured':
        classes.push(message.measured);
        observer.onMeasured?.(message.measured);
        return;
      default:
        return;
    }
  };
  for (;;) {
    const command = { settings, done: classes.map(({ layerClass }) => layerClass), excluded };
    const death = await runProcess(entry, command, receive);
    if (death === undefined) break;
    exclude(death.trial, sentence(death.how, death.trial, death.doing), true);
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
function runProcess(entry: URL, command: CalibrationCommand, receive: (message: CalibrationMessage) => void): Promise<Death | undefined> {
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
    child.on('message', (message: CalibrationMessage) => {
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

function sentence(how: string, { layer }: Trial, doing: string): string {
  return `${how} when "moe-server calibrate" tried it on ${layer} ${doing} (${new Date().toISOString().slice(0, 10)})`;
}
