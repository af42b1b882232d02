// Packs every package as it would be published: node tools/pack.mjs OUT [PLATFORM...]
//
// Native code ships in per-platform packages (packages/<p>/npm/<platform>) that carry the binary built last, and their
// parents name them as optional dependencies. Both are done here, on copies: the tree stays as it is, and no published
// package has an install script. Without platforms it is this machine's; `npm run build:arm64` builds linux-arm64 anywhere.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const here = `${process.platform}-${process.arch}`;
/** Binaries of other platforms than this machine's, and the command that builds them. */
const crossBuilds = { 'linux-arm64': 'npm run build:arm64' };
const [out, ...named] = process.argv.slice(2);
const platforms = named.length > 0 ? [...new Set(named)] : [here];
const unknown = platforms.find((platform) => platform !== here && !(platform in crossBuilds));
if (out === undefined || unknown !== undefined) {
  if (unknown !== undefined)
    console.error(`no build for ${unknown}: this machine's is ${here}, others are ${Object.keys(crossBuilds).join(', ')}`);
  console.error('usage: node tools/pack.mjs OUT [PLATFORM...]');
  process.exit(64);
}
mkdirSync(out, { recursive: true });
const staging = mkdtempSync(join(tmpdir(), 'moe-pack-'));

const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'));

function pack(folder) {
  const printed = execFileSync('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', resolve(out)], {
    cwd: folder,
    encoding: 'utf8',
  });
  const [{ filename }] = JSON.parse(printed);
  console.log(join(out, filename));
}

/** Packs the platform packages of one package and answers their names and versions. */
function packPlatforms(packageFolder) {
  const packed = {};
  for (const platform of platforms) {
    const source = join(packageFolder, 'npm', platform);
    if (!existsSync(source)) continue;
    const { name, version, main } = readJson(join(source, 'package.json'));
    const binary = join(packageFolder, 'build', ...(platform === here ? [] : [platform]), 'Release', main);
    if (!existsSync(binary)) {
      throw new Error(`${binary} is missing: run \`${platform === here ? 'npm run build:native' : crossBuilds[platform]}\` first`);
    }
    const stage = join(staging, `${packageFolder.split('/').at(-1)}-${platform}`);
    cpSync(source, stage, { recursive: true });
    cpSync(binary, join(stage, main));
    pack(stage);
    packed[name] = version;
  }
  return packed;
}

try {
  for (const workspace of readJson(join(root, 'package.json')).workspaces) {
    const folder = join(root, workspace);
    const manifest = readJson(join(folder, 'package.json'));
    if (manifest.private === true) continue;
    const platformPackages = packPlatforms(folder);
    const stage = join(staging, workspace.replaceAll('/', '-'));
    cpSync(folder, stage, {
      recursive: true,
      filter: (source) => !/\/(node_modules|build|npm|test|native|recipe|eval)(\/|$)/.test(source.slice(folder.length)),
    });
    // Source maps point into src/, which is not published.
    const optionalDependencies = { ...manifest.optionalDependencies, ...platformPackages };
    delete manifest.scripts;
    delete manifest.devDependencies;
    writeFileSync(
      join(stage, 'package.json'),
      JSON.stringify(Object.keys(optionalDependencies).length > 0 ? { ...manifest, optionalDependencies } : manifest, null, 2),
    );
    pack(stage);
  }
} finally {
  rmSync(staging, { recursive: true, force: true });
}
