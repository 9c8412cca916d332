#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under ten minutes: benchmarks/gpu.sh OUT
# Builds the extensions, runs the GPU tests, the benchmarks and a short training run, and leaves logs, tables and csv in
# OUT. A step that fails or runs too long does not stop the next; the exit status says whether all went well. Without a
# GPU it is a dry run, small and on the CPU. PYTHON chooses the interpreter (one with torch); FASTSKETCH_DATA a folder to
# train on instead of the built-in faces.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh OUT" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 FASTSKETCH_BUILD=${FASTSKETCH_BUILD:-1} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
GPU=$("$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 2
QUICK=$([ "$GPU" = 1 ] || echo --quick)
STATUS=0

step() { # step NAME SECONDS COMMAND...
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    if timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1; then
        echo "ok      $name  $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
    else
        echo "FAILED  $name  $((SECONDS - start)) s (see $name.log)" | tee -a "$OUT/summary.txt"
        tail -c 3000 "$OUT/$name.log" | tr '\r' '\n' | tail -n 15
        STATUS=1
    fi
}

echo "fastsketch on $([ "$GPU" = 1 ] && nvidia-smi -L | head -n 1 | cut -d'(' -f1 || echo 'a CPU: dry run')" | tee "$OUT/summary.txt"
if [ "$GPU" = 1 ]; then
    step build 120 env MAX_JOBS="$(nproc)" "$PYTHON" setup.py build_ext --inplace
    step info 30 "$PYTHON" -c 'from fastsketch.info import report; print(report())'
    step tests_gpu 120 "$PYTHON" -m pytest -q -m gpu tests/gpu
    step tests_operators 120 env FASTSKETCH_TEST_DEVICE=cuda "$PYTHON" -m pytest -q -k triton \
        tests/reference/test_patch_nce.py tests/reference/test_gather.py tests/reference/test_attention.py
    if command -v compute-sanitizer >/dev/null; then
        step sanitizer 60 compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" -m pytest -q -m gpu \
            tests/gpu/test_triton_kernels.py -k "strides or gather_and_tap or without_negatives"
    fi
else
    step info 60 "$PYTHON" -c 'from fastsketch.info import report; print(report())'
    step tests_gpu 60 "$PYTHON" -m pytest -q -m gpu tests/gpu
fi
step benchmarks 240 "$PYTHON" -m benchmarks.gpu --out "$OUT" $QUICK --rounds "$([ "$GPU" = 1 ] && echo 15 || echo 2)"
if [ "$GPU" = 1 ]; then
    DATA=${FASTSKETCH_DATA:-builtin} SIZE=()
else
    DATA=$OUT/faces
    SIZE=(--image-size 64 --crop-size 64 --width 8 --discriminator-width 8 --projection-dim 32 --num-patches 16)
    step faces 60 "$PYTHON" -c 'import sys; from pathlib import Path; from fastsketch.training.faces import write_faces
write_faces(Path(sys.argv[1]), train=4, test=1, height=64, width=64)' "$DATA"
fi
step train 90 "$PYTHON" -c 'import sys; from fastsketch.cli import main; sys.exit(main())' train --preset fsscl \
    --data "$DATA" --out "$OUT/run" --epochs 1 --decay-epochs 0 --perceptual-weights random "${SIZE[@]}"
echo "exit $STATUS" | tee -a "$OUT/summary.txt"
exit $STATUS
