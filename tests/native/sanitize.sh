#!/bin/sh
# The kernels under the sanitizers. Ends with 0 when every run is clean.
#   [CXX=c++] [PYTHON=python3] tests/native/sanitize.sh [PROBLEMS]
# Always: a driver of its own under address and undefined, then under thread. With PYTHON, an
# interpreter that has the development requirements: the extension under address and undefined too.
set -eu
cd "$(dirname "$0")/../.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compiler=${CXX:-c++}

for sanitizers in address,undefined thread; do
    "$compiler" -std=c++17 -O1 -g -ffp-contract=off -Wall -Wextra -Wno-psabi -pthread \
        -fsanitize="$sanitizers" -fno-sanitize-recover=all -Inative/core \
        native/core/*.cpp tests/native/sanitize_driver.cpp -o "$folder/driver"
    echo "driver, $sanitizers:"
    "$folder/driver" "${1:-2000}"
done

if [ -n "${PYTHON:-}" ]; then
    echo "extension, address,undefined:"
    CFLAGS="-fsanitize=address,undefined -g" LDFLAGS="-fsanitize=address,undefined" \
        "$PYTHON" setup.py -q build_ext --build-lib "$folder/lib" --build-temp "$folder/objects"
    cp native/*.py "$folder/lib/native/"
    # The interpreter itself has no sanitizer, so their libraries come first; it never frees some.
    LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so) $("$compiler" -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
        ORCHESTRATOR_NATIVE=1 OMP_NUM_THREADS=1 \
        "$PYTHON" -m pytest -q -p no:cacheprovider -o pythonpath="$folder/lib" \
        tests/native/test_native_parity.py tests/native/test_native_suppression.py \
        tests/native/test_native_matching.py tests/native/test_native_coco.py
fi
