import { createNodeResolver, importX } from 'eslint-plugin-import-x';
import jsdoc from 'eslint-plugin-jsdoc';
import tseslint from 'typescript-eslint';

/** Who may import whom; the same table stands in ARCHITECTURE.md. */
const forbidden = {
  core: ['@moe-server/engine', '@moe-server/backend-*', 'moe-server'],
  engine: ['@moe-server/backend-*', 'moe-server'],
  'backend-b12x': ['@moe-server/engine', '@moe-server/backend-*', 'moe-server'],
  'backend-cpu': ['@moe-server/engine', '@moe-server/backend-*', 'moe-server'],
  'backend-cutlass': ['@moe-server/engine', '@moe-server/backend-*', 'moe-server'],
  'backend-triton': ['@moe-server/engine', '@moe-server/backend-*', 'moe-server'],
  server: ['@moe-server/backend-*'],
};

const packageRules = Object.entries(forbidden).map(([name, group]) => ({
  files: [`packages/${name}/src/**/*.ts`],
  rules: {
    'no-restricted-imports': ['error', { patterns: [{ group, message: 'See "Who may import whom" in ARCHITECTURE.md.' }] }],
  },
}));

export default tseslint.config(
  { ignores: ['**/dist/', '**/build/', 'coverage/', 'models/', 'docs/api/'] },
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked, importX.flatConfigs.typescript],
    plugins: { 'import-x': importX, jsdoc },
    // unrs-resolver inside understands `.js` specifiers that name `.ts` files; no further resolver package is needed.
    settings: {
      'import-x/resolver': {},
      'import-x/resolver-next': [createNodeResolver({ extensions: ['.ts', '.js', '.json'], extensionAlias: { '.js': ['.ts', '.js'] } })],
    },
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
      '@typescript-eslint/no-unnecessary-condition': ['error', { allowConstantLoopConditions: true }],
      '@typescript-eslint/prefer-nullish-coalescing': ['error', { ignoreConditionalTests: true }],
      // Property functions are part of the contract (method signatures would be bivariant).
      '@typescript-eslint/method-signature-style': ['error', 'property'],
      '@typescript-eslint/no-invalid-void-type': 'off',
      // A registry reads better when every entry names its key.
      '@typescript-eslint/no-unnecessary-type-arguments': 'off',
      '@typescript-eslint/class-literal-property-style': 'off',
      // A typed array index inside its bounds is never undefined; the alternative is a branch in every inner loop.
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      'import-x/no-cycle': ['error', { ignoreExternal: true }],
      'import-x/no-extraneous-dependencies': ['error', { includeTypes: true }],
      eqeqeq: 'error',
    },
  },
  {
    files: ['packages/*/src/**/*.ts'],
    rules: { 'jsdoc/require-jsdoc': ['error', { publicOnly: true, require: { FunctionDeclaration: true, ClassDeclaration: true } }] },
  },
  {
    files: ['**/*.test.ts', 'test/**/*.ts', 'bench/**/*.ts'],
    rules: {
      '@typescript-eslint/no-unused-expressions': 'off',
      '@typescript-eslint/no-floating-promises': [
        'error',
        { allowForKnownSafeCalls: [{ from: 'package', name: ['it', 'describe', 'test'], package: 'mocha' }] },
      ],
      // Root dev dependencies serve every test.
      'import-x/no-extraneous-dependencies': 'off',
    },
  },
  ...packageRules,
);
