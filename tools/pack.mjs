// Packs every package as it would be published: node tools/pack.mjs OUT
//
// Native code ships in per-platform packages (packages/<p>/npm/<platform>) that carry the binary built last, and their
// parents name them as optional dependencies. Both are done here, on copies: the tree stays as it is, and no published
// package has an install script.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');
const out = process.argv[2];
if (out === undefined) {
  console.error('usage: node tools/pack.mjs OUT');
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
  const platforms = join(packageFolder, 'npm');
  const packed = {};
  if (!existsSync(platforms)) return packed;
  const release = join(packageFolder, 'build/Release');
  const binary = existsSync(release) ? readdirSync(release).find((file) => file.endsWith('.node')) : undefined;
  for (const platform of readdirSync(platforms)) {
    const here = `${process.platform}-${process.arch}`;
    if (platform !== here) continue;
    if (binary === undefined) throw new Error(`${packageFolder} has no binary: run \`npm run build:native\` first`);
    const stage = join(staging, `${packageFolder.split('/').at(-1)}-${platform}`);
    cpSync(join(platforms, platform), stage, { recursive: true });
    cpSync(join(release, binary), join(stage, binary));
    pack(stage);
    const { name, version } = readJson(join(stage, 'package.json'));
    packed[name] = version;
  }
  return packed;
}

try {
  for (const workspace of readJson(join(root, 'package.json')).workspaces) {
    const folder = join(root, workspace);
    const manifest = readJson(join(folder, 'package.json'));
    if (manifest.private === true) continue;
    const platforms = packPlatforms(folder);
    const stage = join(staging, workspace.replaceAll('/', '-'));
    cpSync(folder, stage, {
      recursive: true,
      filter: (source) => !/\/(node_modules|build|npm|test|native|recipe|eval)(\/|$)/.test(source.slice(folder.length)),
    });
    // Source maps point into src/, which is not published.
    const optionalDependencies = { ...manifest.optionalDependencies, ...platforms };
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
