#!/usr/bin/env bash
# Every measurement and test that still needs a GPU, in order of worth, in under nine minutes.
#
#     benchmarks/gpu.sh [--out DIR] [--seconds N] [--wheels DIR] [--device cpu] [--tiny]
#
# Each piece has its own time limit and writes DIR/PIECE.json (default: docs/results/gpu, or $OUT).
# A second call skips the pieces whose file exists. Pieces for which no time is left are named.
# Needs PyTorch and what a search needs: no Ray, no Optuna, no network. Packages that are missing
# (jaxtyping, pytest) can come as wheels in a folder: --wheels DIR. Without git, give COMMIT=….
# `--device cpu --tiny` tries the script itself.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-docs/results/gpu} seconds=520 device=cuda wheels='' tiny=()
while (($#)); do
    case $1 in
        --out) out=$2; shift ;;
        --seconds) seconds=$2; shift ;;
        --wheels) wheels=$2; shift ;;
        --device) device=$2; shift ;;
        --tiny) tiny=(--tiny) ;;
        *) sed -n '2,/^set/{/^#/p}' "$0"; exit 2 ;;
    esac
    shift
done
mkdir -p "$out"
started=$SECONDS end=$((SECONDS + seconds)) scratch=$(mktemp -d) lock=$out/lock
trap 'rm -rf "$scratch" "$lock"' EXIT
export PYTHONPATH=$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH} TORCHINDUCTOR_COMPILE_THREADS=4
export COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null)}
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor  # empty: what is compiled is compiled anew
for wheel in ${wheels:+"$wheels"/*.whl}; do python -m zipfile -e "$wheel" "$scratch/wheels"; done
[[ -z $wheels ]] || PYTHONPATH=$scratch/wheels:$PYTHONPATH
missing=$(python - <<'PY'
from importlib.util import find_spec
names = "jaxtyping numpy pandas pytest sklearn timm torch torchvision".split()
print(*(name for name in names if find_spec(name) is None))
PY
)
[[ -z $missing ]] || echo "missing packages: $missing (see --wheels)"

# piece NAME LIMIT COMMAND…: run it with --out, unless it was run or a third of its limit is not left.
piece() {
    local name=$1 limit=$(($2 * slow)) left=$((end - SECONDS)) from=$SECONDS
    shift 2
    [[ ! -e $out/$name.json ]] || return 0
    if ((left < limit / 3)); then echo "$name: no time left"; return; fi
    if timeout "$((left < limit ? left : limit))" "$@" --out "$out/$name.part" >"$out/$name.log" 2>&1; then
        mv "$out/$name.part" "$out/$name.json"
        echo "$name: $((SECONDS - from)) s"
    else
        echo "$name: failed after $((SECONDS - from)) s: $(tail -n 1 "$out/$name.log")"
    fi
}
step() { piece "$1" "$2" python benchmarks/search_step.py --device "$device" "${tiny[@]}" --seconds 4 "${@:3}"; }
# compiled ORDER BATCH LIMIT STAGE:RATIO… -- OPTION…: several compile at once, and are timed one by one.
compiled() {
    local order=$1 batch=$2 limit=$3 cells=()
    shift 3
    while [[ $# -gt 0 && $1 != -- ]]; do cells+=("$1"); shift; done
    for cell in "${cells[@]}"; do
        step "order$order-batch$batch-stage${cell%:*}-ratio${cell#*:}" "$limit" --orders "$order" \
            --batches "$batch" --stages "${cell%:*}" --ratios "${cell#*:}" "${fast[@]}" \
            --lock "$lock" "${@:2}" &
        ((${#tiny[@]} == 0)) || wait  # a small machine takes one after the other
    done
}
tests() {
    piece tests 75 flock -s "$lock" python benchmarks/gpu_tests.py tests/search/test_cuda_graph.py \
        tests/data/test_splits.py
}
all=(1:1 2:1 3:1 1:0.5 2:0.5 3:0.5) one=(1:1 2:1 3:1) half=(1:0.5 2:0.5 3:0.5)
small=64 middle=128 large=256 captured=(--cuda-graph) fast=(--compile --cuda-graph)
slow=1
if [[ $device == cpu ]]; then captured=() fast=() slow=10; fi
if ((${#tiny[@]})); then small=4 middle=6 large=8; fi

tests &
compiled 1 $small 170 "${all[@]}" -- --profile
wait
piece whole_search 220 env TORCHINDUCTOR_CACHE_DIR="$scratch/search" python \
    benchmarks/whole_search.py --device "$device" "${tiny[@]}" "${fast[@]}"
step methods 60 --stages 1 --ratios 1 --methods
step captured 60 --ratios 0.5 "${captured[@]}" --ways ours
step second_order_captured 90 --orders 2 "${captured[@]}" --ways ours
compiled 1 $middle 130 "${one[@]}" -- --ways ours
compiled 1 $large 130 1:1 3:1 -- --ways ours  # all that fit on one GPU beside each other
wait
step four_at_once 60 --stages 1 --ratios 0.5 "${captured[@]}" --processes 4
compiled 2 $small 150 "${one[@]}" -- --ways ours
compiled 1 $large 130 2:1 -- --ways ours
wait
compiled 1 $large 130 "${half[@]}" -- --ways ours
compiled 1 $middle 130 "${half[@]}" -- --ways ours
wait
compiled 2 $small 150 "${half[@]}" -- --ways ours
wait
step plan 60 --check-plan
piece ablation 120 python benchmarks/ablation.py --device "$device" "${tiny[@]}" "${captured[@]}"
echo "$((SECONDS - started)) s in all"
python benchmarks/tables.py "$out"
