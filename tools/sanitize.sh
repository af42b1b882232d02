#!/usr/bin/env bash
# Runs a package's native tests under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer; in the package's
# folder, by `npm run test:sanitize`. What it builds lies in build/ beside the product.
set -euo pipefail
for sanitizer in address,undefined thread; do
  folder="build/${sanitizer%,*}"
  # More optimization of instrumented kernels takes many minutes.
  flags="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$sanitizer"
  cmake -S . -B "$folder" -DCMAKE_BUILD_TYPE=None -DMOE_BUILD_TESTS=ON -DCMAKE_CXX_FLAGS="$flags" >/dev/null
  cmake --build "$folder" >/dev/null
  ctest --test-dir "$folder" --output-on-failure
done
