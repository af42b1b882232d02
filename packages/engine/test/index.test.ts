import { execFileSync } from 'node:child_process';
import { expect } from 'chai';

describe('@moe-server/engine', () => {
  it('loads no native code when it is only imported, as the HTTP process does', () => {
    const script = `await import(${JSON.stringify(new URL('../src/index.js', import.meta.url).href)});
      process.report.excludeNetwork = true;
      console.log(JSON.stringify(process.report.getReport().sharedObjects.filter((file) => file.endsWith('.node'))));`;
    expect(execFileSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8' }).trim()).to.equal('[]');
  });
});
