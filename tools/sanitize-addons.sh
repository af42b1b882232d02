#!/usr/bin/env bash
# Builds both addons with AddressSanitizer and UndefinedBehaviorSanitizer and runs pocket-dictionary and the packages' native tests on
# them: the second half of `npm run test:sanitize`. `npm run build` comes before. What it builds lies in build/ beside the product.
set -euo pipefail
cd "$(dirname "$0")/.."
flags="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined -fsanitize=address,undefined"
for package in engine backend-cpu; do
  (cd "packages/$package" && npx cmake-js compile --debug --out build/address-addon --CDCMAKE_CXX_FLAGS="$flags" --log-level warn >/dev/null)
done
# Node itself is not instrumented: the runtime comes first by LD_PRELOAD, and what V8 still holds at the end is no leak.
MOE_ENGINE_CPU_ADDON="$PWD/packages/engine/build/address-addon/Debug/engine_cpu.node" \
MOE_BACKEND_CPU_ADDON="$PWD/packages/backend-cpu/build/address-addon/Debug/backend_cpu.node" \
ASAN_OPTIONS=detect_leaks=0 \
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
  node node_modules/mocha/bin/mocha.js --no-config --reporter dot --timeout 300000 test/dist/e2e/pocket-dictionary.test.js \
  'packages/engine/dist/test/device/cpu-device*.test.js' 'packages/backend-cpu/dist/test/*.test.js'
