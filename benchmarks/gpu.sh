#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most nine minutes:
#
#   COMMIT=$(git rev-parse --short HEAD) bash benchmarks/gpu.sh OUT [WHEELS]
#
# Correctness of every kernel on the device, then times, traffic and memory at the size of Llama-2-7b, into the folder
# OUT. Needs torch, triton, pytest, pytest-xdist, hypothesis and rich, no network; TRL is not imported. COMMIT is noted in
# the results where the folder has no history. WHEELS is a folder with wheels of the optimizers to compare with, or of
# some of them: bitsandbytes, torch-optimi, flashoptim, torchao (`pip download --no-deps`).
set -uo pipefail

if [ $# -lt 1 ]; then
    echo "usage: bash benchmarks/gpu.sh OUT [WHEELS]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "torch sees no GPU here; on a CPU run: python -m benchmarks kernels" >&2
    exit 2
}

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$wheels" ]; then
    python3 -m pip install -q --no-index --no-deps --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:$PWD/kernels:$PWD" HF_HUB_OFFLINE=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

failed=0
step() { # name, seconds, command: all output to OUT/gpu.log, its end to the terminal
    local name=$1 seconds=$2 start=$SECONDS status
    shift 2
    timeout "$seconds" "$@" >"$site/log" 2>&1
    status=$?
    { echo "== $name"; cat "$site/log"; } >>"$out/gpu.log"
    echo "== $name"
    tail -n 40 "$site/log"
    echo "== $name: exit $status after $((SECONDS - start)) s" | tee -a "$out/gpu.log"
    [ $status -eq 0 ] || failed=1
}

alone="--confcutdir=tests/kernels tests/kernels"
step tests 150 python3 -m pytest -q -n 8 -m "not gpu and not slow" $alone
step tests_large 40 python3 -m pytest -q -m gpu $alone
step selection 90 python3 -m benchmarks kernels --only selection ops --output "$out/selection.json"
step steps_sparse 130 python3 -m benchmarks kernels --only step --densities 0.05 --output "$out/steps_sparse.json"
step steps_dense 120 python3 -m benchmarks kernels --only step --layers 8 --densities 0.5 0.95 \
    --output "$out/steps_dense.json"
exit $failed
