#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under ten minutes: benchmarks/gpu.sh OUT
# Builds the extensions, runs the GPU tests, the benchmarks, whole training steps and a short training run. OUT gets tables,
# csv and summary.txt, and in details.tar.gz the logs and the run's folder without its weights. A step that fails or
# hangs does not stop the next; the exit status says whether all went well. Without a GPU it is a dry run, small and on the
# CPU. OUT should be a folder of its own: its logs and its `run` end in the archive. From the environment:
#   PYTHON             the interpreter, one with torch (python3)
#   FASTSKETCH_WHEELS  a folder of wheels to install first, without a network (.carry/wheels, where that is)
#   FASTSKETCH_SITE    where they are installed (a new temporary folder)
#   FASTSKETCH_DATA    a folder to train on, as CUFS (.carry/data/cufs, where that is; otherwise built-in faces)
#   FASTSKETCH_WEIGHTS pretrained weights for the perceptual loss (.carry/weights, where that is; otherwise random)
#   FASTSKETCH_BUDGET  seconds for everything (570)
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh OUT" >&2; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PYTHON=${PYTHON:-python3}
BUDGET=${FASTSKETCH_BUDGET:-570}
GRACE=10 # seconds between being asked to end and being made to
existing() { if [ -e "$1" ]; then echo "$PWD/$1"; fi; }
WHEELS=${FASTSKETCH_WHEELS:-$(existing .carry/wheels)}
DATA=${FASTSKETCH_DATA:-$(existing .carry/data/cufs)}
WEIGHTS=${FASTSKETCH_WEIGHTS:-$(existing .carry/weights)}
export PYTHONUNBUFFERED=1 FASTSKETCH_BUILD=${FASTSKETCH_BUILD:-1} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
STATUS=$(mktemp)
: >"$OUT/summary.txt"

say() { echo "$@" | tee -a "$OUT/summary.txt"; }

step() { # step NAME SECONDS COMMAND...: at most so many seconds, and what is left of the budget
    local name=$1 limit=$2 start=$SECONDS left=$((BUDGET - SECONDS - GRACE)) code
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -le 0 ]; then
        say "SKIPPED $name  no time left"
        echo 1 >>"$STATUS"
        return
    fi
    timeout --signal=INT --kill-after=$GRACE "$limit" "$@" >"$OUT/$name.log" 2>&1 </dev/null
    code=$?
    case $code in
    0) say "ok      $name  $((SECONDS - start)) s" ;;
    124 | 137) say "TIMEOUT $name  $((SECONDS - start)) s (see $name.log)" ;;
    *) say "FAILED  $name  $((SECONDS - start)) s (exit $code, see $name.log)" ;;
    esac
    if [ $code -ne 0 ]; then
        tail -c 3000 "$OUT/$name.log" | tr '\r' '\n' | tail -n 15
        echo 1 >>"$STATUS"
    fi
}

if [ -n "$WHEELS" ]; then
    SITE=${FASTSKETCH_SITE:-$(mktemp -d)}
    step wheels 40 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$SITE"
fi
GPU=$(timeout 150 "$PYTHON" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 2
MISSING=$(timeout 60 "$PYTHON" - <<'P'
import importlib.util
needed = "pytest triton cv2 matplotlib tensorboard safetensors tyro tqdm torchvision torchmetrics piq lpips scipy".split()
print(*(name for name in needed if importlib.util.find_spec(name) is None))
P
)
say "fastsketch on $([ "$GPU" = 1 ] && nvidia-smi -L | head -n 1 | cut -d'(' -f1 || echo 'a CPU: dry run')"
[ -z "$MISSING" ] || say "missing: $MISSING (steps that need these will fail)"

TESTS=("$PYTHON" -m pytest -q -p no:cacheprovider)
UNTRIED=(env FASTSKETCH_GPU_CHECK=0 "$PYTHON") # the GPU kernels, whatever their trial said
TRAINING=60
# What is wanted most comes first: do the kernels work, how long does a step take; then tests, and the operators' bars with what
# is left before the training run.
if [ "$GPU" = 1 ]; then
    ARCH=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
    # Compiling one kernel after the other takes too long: several processes, where pytest-xdist is there.
    workers() { "$PYTHON" -c 'import xdist' 2>/dev/null && echo "-n $1"; }
    step build 200 env FASTSKETCH_CUDA=1 TORCH_CUDA_ARCH_LIST="$ARCH" MAX_JOBS="$(nproc)" "$PYTHON" setup.py build_ext --inplace
    # Nothing is timed beside the check: meanwhile the steps' kernels are compiled, by taking the steps that come next.
    STEPS=("${UNTRIED[@]}" -m fastsketch bench step --device cuda --sizes 256)
    step check 200 "$PYTHON" -m fastsketch check-gpu &
    step compile_steps_1 200 "${STEPS[@]}" --batches 1 --rounds 1 --no-memory &
    step compile_steps_8 200 "${STEPS[@]}" --batches 8 --rounds 1 --no-memory &
    wait
    step info 30 "${UNTRIED[@]}" -m fastsketch info
    step steps 150 "${STEPS[@]}" --batches 1 8 --rounds 10 --save "$OUT"
    # Side by side: most of their time goes into compiling kernels on the CPU, and nothing in them is timed.
    step tests_triton 150 "${TESTS[@]}" $(workers 6) -m gpu tests/gpu/test_triton_kernels.py tests/gpu/test_networks.py &
    step tests_sampling 150 "${TESTS[@]}" -m gpu tests/gpu/test_sampling_cuda.py &
    step tests_training 150 env FASTSKETCH_GPU_CHECK=0 "${TESTS[@]}" $(workers 5) -m gpu \
        tests/training/test_on_gpu.py tests/training/test_device_data.py &
    step tests_operators 150 env FASTSKETCH_TEST_DEVICE=cuda "${TESTS[@]}" $(workers 4) -k triton \
        tests/reference/test_patch_nce.py tests/reference/test_gather.py tests/reference/test_attention.py &
    wait
    QUICK=() ROUNDS=15 SIZE=()
else
    step info 60 "$PYTHON" -m fastsketch info
    step tests_triton 60 "${TESTS[@]}" -m gpu tests/gpu tests/training/test_{on_gpu,device_data}.py # skipped, all: they must be collected
    QUICK=(--quick) ROUNDS=2
    SIZE=(--image-size 64 --crop-size 64 --width 8 --discriminator-width 8 --projection-dim 32 --num-patches 16)
    DATA=$OUT/faces WEIGHTS=
    step faces 60 "$PYTHON" -c 'import sys; from pathlib import Path; from fastsketch.training.faces import write_faces
write_faces(Path(sys.argv[1]), train=4, test=1, height=64, width=64)' "$DATA"
    step steps 150 "$PYTHON" -m fastsketch bench step --sizes 32 --rounds 1 --no-memory --save "$OUT"
fi
step benchmarks $((BUDGET - SECONDS - TRAINING - 3 * GRACE)) \
    "$PYTHON" -m benchmarks.gpu --out "$OUT" "${QUICK[@]}" --rounds $ROUNDS

if [ -n "$WEIGHTS" ]; then PERCEPTUAL=(--weights-dir "$WEIGHTS"); else PERCEPTUAL=(--perceptual-weights random); fi
# Interrupted after a while, which training answers by saving and 130: as good as the end of the epoch here.
step train $TRAINING bash -c 'timeout --signal=INT --preserve-status --kill-after=5 "$@"; code=$?; [ $code -eq 130 ] || exit $code' - \
    $((TRAINING - 15)) "$PYTHON" -m fastsketch train --preset fsscl \
    --data "${DATA:-builtin}" --out "$OUT/run" --epochs 1 --decay-epochs 0 "${PERCEPTUAL[@]}" "${SIZE[@]}"
# A square canvas against the tight one of every training: with what is left.
[ "$GPU" = 0 ] || step portraits 120 "${STEPS[@]}" --presets fsscl --portraits --rounds 10 --no-memory --save "$OUT"
if [ "$GPU" = 1 ] && command -v compute-sanitizer >/dev/null; then
    step sanitizer 90 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 "${TESTS[@]}" -m gpu \
        tests/gpu/test_triton_kernels.py -k "strides or layers or without_negatives"
fi

CODE=$([ -s "$STATUS" ] && echo 1 || echo 0)
rm -f "$STATUS"
say "exit $CODE after $SECONDS s"
# Few files to carry away: all but tables in one, weights in none.
(cd "$OUT" && DETAILS=(*.log) && { [ ! -d run ] || DETAILS+=(run); } &&
    tar -czf details.tar.gz --exclude='*.safetensors' --exclude='*.pt' "${DETAILS[@]}" && rm -rf "${DETAILS[@]}")
[ "$GPU" = 1 ] || rm -rf "$OUT/faces" # the dry run's own
exit "$CODE"
