import type { CpuDeviceInfo } from '../../src/device-info.js';
import {
  createReferenceLinearBackend,
  createReferenceMoeBackend,
  describeLinearBackend,
  describeMoeBackend,
} from '../../src/conformance/index.js';

const device: CpuDeviceInfo = { type: 'cpu', name: 'any CPU', architecture: 'other', features: [], numThreads: 1, memoryBytes: undefined };

describeMoeBackend({ name: 'reference', create: createReferenceMoeBackend, device });
describeLinearBackend({ name: 'reference', create: createReferenceLinearBackend, device });
