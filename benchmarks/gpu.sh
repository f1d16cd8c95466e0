#!/usr/bin/env bash
# Everything that needs a GPU, in two commands of at most nine minutes each:
#
#   COMMIT=$(git rev-parse --short HEAD) bash benchmarks/gpu.sh OUT [WHEELS [kernels]]
#   COMMIT=$(git rev-parse --short HEAD) bash benchmarks/gpu.sh OUT WHEELS memory
#
# kernels: correctness of every kernel on the device, then times, traffic and memory at the size of Llama-2-7b. Needs
# torch, triton, pytest, pytest-xdist, hypothesis and rich; TRL is not imported.
# memory: mask and training of Llama-2-7b, then of Llama-3.1-8B, within 24 GB, and between them TRL's dense SFT without a
# limit. Needs a GPU of 80 GB, what the package needs (pyproject.toml), and 56 GB of disk or /dev/shm for a while.
#
# Results go into the folder OUT. No network. COMMIT is noted in them where the folder has no history. WHEELS is a folder
# with wheels of what is not installed (`pip download --no-deps`): of the optimizers to compare with, or of some of them
# (bitsandbytes, torch-optimi, flashoptim, torchao); for memory trl, datasets and what they lack.
set -uo pipefail

if [ $# -lt 1 ]; then
    echo "usage: bash benchmarks/gpu.sh OUT [WHEELS [kernels|memory]]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
wheels=${2:+$(cd "$2" && pwd)}
what=${3:-kernels}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "torch sees no GPU here; on a CPU run: python -m benchmarks $what" >&2
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

kernels() {
    local alone="--confcutdir=tests/kernels tests/kernels"
    step tests 150 python3 -m pytest -q -n 8 -m "not gpu and not slow" $alone
    step tests_large 40 python3 -m pytest -q -m gpu $alone
    step selection 90 python3 -m benchmarks kernels --only selection ops --output "$out/selection.json"
    step steps_sparse 130 python3 -m benchmarks kernels --only step --densities 0.05 --output "$out/steps_sparse.json"
    step steps_dense 120 python3 -m benchmarks kernels --only step --layers 8 --densities 0.5 0.95 \
        --output "$out/steps_dense.json"
}

memory() {
    # Masks note the package's version, which a copy that is not installed does not have
    python3 -c 'from importlib.metadata import version; version("wagle-trl")' 2>/dev/null || {
        mkdir "$site/wagle_trl-0.dist-info"
        printf 'Metadata-Version: 2.1\nName: wagle-trl\nVersion: 0\n' >"$site/wagle_trl-0.dist-info/METADATA"
    }
    TMPDIR=$(roomiest "${TMPDIR:-/tmp}" /dev/shm)
    export TMPDIR
    local run=(python3 -m benchmarks memory --device cuda --steps 20 --output "$out/memory.json")
    local ours=(--recipe ours --run whole --density 0.05 --state_bits 8 --cap 24)
    step memory_7b 210 "${run[@]}" --shape llama2-7b "${ours[@]}"
    step memory_7b_dense 110 "${run[@]}" --shape llama2-7b --recipe dense
    step memory_8b 210 "${run[@]}" --shape llama3.1-8b "${ours[@]}"
}

roomiest() { # of folders, the one with most free space
    local folder
    for folder in "$@"; do
        [ -d "$folder" ] && echo "$(df -P "$folder" | awk 'NR == 2 { print $4 }') $folder"
    done | sort -n | tail -n 1 | cut -d ' ' -f 2-
}

case $what in
    kernels | memory) $what ;;
    *) echo "no such measurement: $what" >&2 && exit 2 ;;
esac
exit $failed
