import 'reflect-metadata';
import { expect } from 'chai';
import { container, inject, injectable } from 'tsyringe';
import type { MoeBackend } from '../src/backend.js';
import { isMoeError, type MoeError } from '../src/errors.js';
import { createPluginHost, loadPlugin, planWith, type PluginHost } from '../src/plugin-host.js';
import { contractVersion, definePlugin, PLUGIN, type Plugin } from '../src/plugin.js';
import { CLOCK, LOGGER, MOE_BACKEND, type Clock, type Logger } from '../src/tokens.js';
import { expertGroup, expertRule, gb10, linearBackend, linearRule, moeBackend } from './oracle/declared-backends.js';

interface Warning {
  readonly fields: Readonly<Record<string, unknown>>;
  readonly message: string;
}

function listening(): { logger: Logger; warnings: Warning[] } {
  const warnings: Warning[] = [];
  const ignore = () => undefined;
  return {
    warnings,
    logger: { debug: ignore, info: ignore, error: ignore, warn: (fields, message) => warnings.push({ fields, message }) },
  };
}

function pluginOf(name: string, apply: Plugin['apply']): Plugin {
  return definePlugin({ name, version: '1.2.3', contract: contractVersion, apply });
}

const bf16 = (name: string, priority = 1) => moeBackend(name, priority, [expertRule('r', ['bf16'])]);

function planOn(host: PluginHost) {
  return planWith(host, { layers: [expertGroup(0, 'bf16')], device: gb10, maxNumTokens: 64 });
}

async function errorOf(promise: Promise<unknown>): Promise<MoeError> {
  try {
    await promise;
  } catch (error) {
    if (isMoeError(error)) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

describe('PluginHost', () => {
  it('has a container of its own below the one it is given, with a logger and a clock', () => {
    const { logger } = listening();
    const parent = container.createChildContainer();
    const first = createPluginHost({ container: parent, logger });
    const second = createPluginHost({ container: parent });
    expect(first.container.resolve(LOGGER)).to.equal(logger);
    expect(second.container.resolve(LOGGER)).not.to.equal(logger);
    expect(first.container.resolve<Clock>(CLOCK).nowMs()).to.be.a('number');
    expect(parent.isRegistered(LOGGER)).to.equal(false);
  });

  it('keeps a clock that the parent container has', () => {
    const parent = container.createChildContainer();
    const clock: Clock = { nowMs: () => 7 };
    parent.register(CLOCK, { useValue: clock });
    expect(createPluginHost({ container: parent }).container.resolve(CLOCK)).to.equal(clock);
  });

  it('registers the backends of either kind under one name each', async () => {
    const host = createPluginHost();
    const info = await loadPlugin(
      host,
      pluginOf('two', (to) => {
        to.addMoeBackend(bf16('two'));
        to.addLinearBackend(linearBackend('two', 1, [linearRule('r', ['bf16'])]));
      }),
      'two@npm',
    );
    expect(info).to.deep.equal({ name: 'two', version: '1.2.3', source: 'two@npm', moeBackends: ['two'], linearBackends: ['two'] });
    expect(host.plugins).to.deep.equal([info]);
    expect(host.moeBackends.map(({ name, plugin }) => [name, plugin])).to.deep.equal([['two', 'two']]);
    expect(host.linearBackends.map(({ name }) => name)).to.deep.equal(['two']);
    expect(host.container.resolveAll<MoeBackend>(MOE_BACKEND).map(({ name }) => name)).to.deep.equal(['two']);
  });

  it('takes classes from the plugin container, with what they ask to be injected', async () => {
    const { logger } = listening();
    const host = createPluginHost({ logger });
    @injectable()
    class Declared {
      readonly logger: Logger;
      constructor(@inject(LOGGER) given: Logger) {
        this.logger = given;
        Object.assign(this, bf16('by-class'));
      }
    }
    await loadPlugin(
      host,
      pluginOf('classes', ({ container: own }) => void own.register(MOE_BACKEND, { useClass: Declared })),
      'classes',
    );
    expect(host.moeBackends.map(({ name }) => name)).to.deep.equal(['by-class']);
    expect((host.moeBackends[0]?.implementation as Declared).logger).to.equal(logger);
  });

  it('waits for an apply that takes its time', async () => {
    const host = createPluginHost();
    await loadPlugin(
      host,
      pluginOf('slow', async (to) => {
        await Promise.resolve();
        to.addMoeBackend(bf16('slow'));
      }),
      'slow',
    );
    expect(host.moeBackends).to.have.length(1);
  });

  const noPlugins: [what: string, candidate: unknown, message: string][] = [
    ['nothing', undefined, 'its default export is undefined'],
    ['null', null, 'its default export is null'],
    ['a function', () => undefined, 'its default export is function'],
    [
      'an object without the brand',
      { name: 'x', version: '1', contract: contractVersion, apply: () => undefined },
      'does not carry the brand',
    ],
    ['one without a name', { [PLUGIN]: true, version: '1', contract: contractVersion, apply: () => undefined }, 'it has no name'],
    ['one without a version', { [PLUGIN]: true, name: 'x', contract: contractVersion, apply: () => undefined }, '"x" has no version'],
    ['one without apply', { [PLUGIN]: true, name: 'x', version: '1', contract: contractVersion }, '"x" has no apply()'],
  ];
  for (const [what, candidate, message] of noPlugins) {
    it(`refuses ${what}`, async () => {
      const error = await errorOf(loadPlugin(createPluginHost(), candidate, 'some-package'));
      expect(error.code).to.equal('MOE_PLUGIN_LOAD');
      expect(error.message).to.contain('some-package is not a plugin').and.to.contain(message);
    });
  }

  for (const contract of [contractVersion + 1, 0, undefined, '1']) {
    it(`refuses contract version ${String(contract)}${typeof contract === 'string' ? ' as text' : ''} by name`, async () => {
      const plugin = { ...definePlugin({ name: 'old', version: '0.9.0', contract: 0, apply: () => undefined }), contract, [PLUGIN]: true };
      const error = await errorOf(loadPlugin(createPluginHost(), plugin, 'old@npm'));
      expect(error.code).to.equal('MOE_PLUGIN_CONTRACT');
      expect(error.message).to.contain(
        `The plugin "old" 0.9.0 (old@npm) was built for contract version ${String(contract)}; this server has ${contractVersion}`,
      );
    });
  }

  it('refuses a second plugin of a name, naming both sources', async () => {
    const host = createPluginHost();
    await loadPlugin(
      host,
      pluginOf('same', () => undefined),
      'first',
    );
    const error = await errorOf(
      loadPlugin(
        host,
        pluginOf('same', () => undefined),
        'second',
      ),
    );
    expect(error.code).to.equal('MOE_PLUGIN_DUPLICATE');
    expect(error.message).to.contain('(second) is taken by first');
  });

  it('refuses a backend name that another plugin has, or the plugin itself', async () => {
    const host = createPluginHost();
    await loadPlugin(
      host,
      pluginOf('one', (to) => {
        to.addMoeBackend(bf16('taken'));
      }),
      'one',
    );
    const other = await errorOf(
      loadPlugin(
        host,
        pluginOf('two', (to) => {
          to.addMoeBackend(bf16('taken'));
        }),
        'two',
      ),
    );
    const twice = await errorOf(
      loadPlugin(
        host,
        pluginOf('three', (to) => {
          to.addMoeBackend(bf16('x'));
          to.addMoeBackend(bf16('x'));
        }),
        'three',
      ),
    );
    expect([other.code, twice.code]).to.deep.equal(['MOE_PLUGIN_DUPLICATE', 'MOE_PLUGIN_DUPLICATE']);
    expect(other.message).to.contain('by plugin "one"');
    expect(host.plugins.map(({ name }) => name)).to.deep.equal(['one']);
  });

  it('leaves nothing of a plugin that breaks: no backend, no tap, no registration', async () => {
    const { logger } = listening();
    const host = createPluginHost({ logger });
    await loadPlugin(
      host,
      pluginOf('good', (to) => {
        to.addMoeBackend(bf16('good'));
      }),
      'good',
    );
    const token = Symbol('something');
    const boom = new Error('boom');
    const error = await errorOf(
      loadPlugin(
        host,
        pluginOf('bad', (to) => {
          to.addMoeBackend(bf16('bad', 99));
          to.addLinearBackend(linearBackend('bad', 1, [linearRule('r', ['bf16'])]));
          to.hooks.candidates.tap('bad', () => []);
          to.container.register(MOE_BACKEND, { useValue: bf16('worse') });
          to.container.register(token, { useValue: 1 });
          to.container.register(LOGGER, { useValue: undefined });
          throw boom;
        }),
        'bad@npm',
      ),
    );
    expect(error.code).to.equal('MOE_PLUGIN_LOAD');
    expect(error.cause).to.equal(boom);
    expect(error.message).to.contain('The plugin "bad" (bad@npm) failed while it was applied: boom. The server goes on without it.');
    expect(host.moeBackends.map(({ name }) => name)).to.deep.equal(['good']);
    expect(host.linearBackends).to.deep.equal([]);
    expect(host.hooks.candidates.taps).to.deep.equal([]);
    expect(host.container.isRegistered(token, true)).to.equal(false);
    expect(host.container.resolve(LOGGER)).to.equal(logger);
    expect(host.container.resolveAll(MOE_BACKEND)).to.have.length(1);
    expect(planOn(host).layers[0]?.bindings[0]?.backend).to.equal('good');
    // The name is free again.
    await loadPlugin(
      host,
      pluginOf('bad', (to) => {
        to.addMoeBackend(bf16('bad'));
      }),
      'repaired',
    );
    expect(host.moeBackends).to.have.length(2);
  });

  it('keeps the code of a rule that describes itself wrongly, and nothing of the plugin', async () => {
    const host = createPluginHost();
    const faulty = pluginOf('faulty', (to) => {
      to.addMoeBackend(bf16('fine'));
      to.addMoeBackend(moeBackend('faulty', 1, [expertRule('r', ['bf16'], { layout: 'no layout' })]));
    });
    const error = await errorOf(loadPlugin(host, faulty, 'faulty'));
    expect([error.code, error.details.path, host.moeBackends.length]).to.deep.equal(['MOE_PLUGIN_RULE', 'rules[0].layout', 0]);
  });

  it('takes a copy of the rules: what a backend changes afterwards does not count', async () => {
    const host = createPluginHost();
    const schemes: ('bf16' | 'fp8.block128')[] = ['bf16'];
    await loadPlugin(
      host,
      pluginOf('p', (to) => {
        to.addMoeBackend(moeBackend('p', 1, [expertRule('r', schemes)]));
      }),
      'p',
    );
    schemes.push('fp8.block128');
    const made = planWith(host, { layers: [expertGroup(0, 'fp8.block128')], device: gb10, maxNumTokens: 64 });
    expect(made.unserved).to.have.length(1);
  });
});

describe('hooks', () => {
  const tapping = (...taps: Plugin['apply'][]) => {
    const { logger, warnings } = listening();
    const host = createPluginHost({ logger });
    const load = async () => {
      await loadPlugin(
        host,
        pluginOf('backends', (to) => {
          to.addMoeBackend(bf16('a', 9));
          to.addMoeBackend(bf16('b'));
        }),
        'backends',
      );
      for (const [index, apply] of taps.entries()) await loadPlugin(host, pluginOf(`tap${index}`, apply), 'test');
      return planOn(host);
    };
    return { host, warnings, load };
  };

  it('candidates: what a tap removes is refused in its name', async () => {
    const { load } = tapping(({ hooks }) => {
      hooks.candidates.tap('no-a', (candidates) => candidates.filter(({ backend }) => backend !== 'a'));
    });
    const [layer] = (await load()).layers;
    expect(layer?.bindings[0]?.backend).to.equal('b');
    expect(layer?.refused).to.deep.equal([
      {
        backend: 'a',
        rule: 'r',
        reasons: [{ dimension: 'hook', message: 'no-a removed it from the candidates.', required: undefined, actual: undefined }],
      },
    ]);
  });

  it('candidates: what a tap adds is dropped with a warning', async () => {
    const { load, warnings } = tapping(({ hooks }) => {
      hooks.candidates.tap('forger', (candidates) => [
        { backend: 'evil', rule: 'r', numerics: 'same' as const, priority: 1e9, built: true },
        ...candidates,
        { ...candidates[0] } as never,
      ]);
    });
    const [layer] = (await load()).layers;
    expect(layer?.bindings[0]?.backend).to.equal('a');
    expect(warnings.map(({ message }) => message)).to.deep.equal([
      'forger may narrow the candidates of model.layers.0.mlp.experts, not add to them; 2 dropped',
    ]);
  });

  it('candidates: no tap widens by changing the list or a candidate in place', async () => {
    const { load, warnings } = tapping(({ hooks }) => {
      hooks.candidates.tap('mutator', (candidates) => {
        (candidates as unknown[]).push({});
        return candidates;
      });
    });
    expect((await load()).layers[0]?.bindings[0]?.backend).to.equal('a');
    expect(warnings[0]?.message).to.contain('A tap of the hook "candidates" failed and was skipped');
  });

  it('candidates: a tap that answers nothing, or nonsense, leaves all', async () => {
    const { load, warnings } = tapping(
      ({ hooks }) => {
        hooks.candidates.tap('silent', () => undefined as never);
      },
      ({ hooks }) => {
        hooks.candidates.tap('nonsense', () => 'all' as never);
      },
    );
    expect((await load()).layers[0]?.eligible).to.have.length(1);
    expect(warnings).to.have.length(1);
  });

  it('candidates: each tap sees what the ones before it left', async () => {
    const seen: number[] = [];
    const { load } = tapping(
      ({ hooks }) => {
        hooks.candidates.tap('first', (candidates) => candidates.slice(1));
      },
      ({ hooks }) => {
        hooks.candidates.tap('second', (candidates) => {
          seen.push(candidates.length);
          return candidates;
        });
      },
    );
    await load();
    expect(seen).to.deep.equal([1]);
  });

  it('planned and pluginLoaded: are told, and a tap that throws keeps nothing from going on', async () => {
    const told: string[] = [];
    const { host, load, warnings } = tapping(
      ({ hooks }) => {
        hooks.planned.tap('broken', () => {
          throw new Error('boom');
        });
        hooks.planned.tap('listener', ({ hash }) => void told.push(hash));
        hooks.pluginLoaded.tap('listener', ({ name }) => void told.push(name));
      },
      () => undefined,
    );
    const { hash } = await load();
    expect(told).to.deep.equal(['tap0', 'tap1', hash]);
    expect(warnings.map(({ fields }) => fields)).to.deep.equal([{ hook: 'planned', tap: 'broken', error: 'boom' }]);
    expect(host.plugins).to.have.length(3);
  });
});
