#!/usr/bin/env bash
# What the paper preset costs on one GPU: both stages at full size with random weights, in at most 8
# minutes and without a download. Needs what requirements.txt lists, 10 GB of disk and 30 GB of
# GPU memory.
#
#   benchmarks/gpu.sh                         writes benchmarks/gpu.json
#   benchmarks/gpu.sh small OUT.json          every line of it on a CPU, at reduced size
#
# PYTHON names the interpreter, TMPDIR a disk with room.
set -euo pipefail
size=${1:-full}
out=$(realpath "${2:-$(dirname "$0")/gpu.json}")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ "$size" = small ]; then
    flags=--small
    dtype=float32 steps=2 batch=2 limit=3600
    export ACCELERATE_USE_CPU=true
else
    flags=
    dtype=bfloat16 steps=20 batch=8 limit=470
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
        echo "$0: no GPU here; try every line on the CPU by: $0 small OUT.json" >&2
        exit 1
    }
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m benchmarks.gpu make "$folder" $flags
# What it found so far is on disk, so that a measurement that takes too long costs only itself.
timeout $((limit * 7 / 10)) "$python" -m benchmarks.gpu measure "$folder" $flags ||
    echo "$0: not everything could be measured" >&2

# The scripts themselves, from media to answers, by one process of DDP.
launch() {
    script=$1 name=$2
    shift 2
    left=$((limit - SECONDS)) # SECONDS is bash's own, since the start
    timeout $((left > 1 ? left : 1)) "$python" -m torch.distributed.run --standalone --nproc_per_node 1 "$script" \
        --preset paper --name "$name" --data "$folder/data" --cache "$folder/cache" \
        --visual_encoder "$folder/vivit" --audio_encoder "$folder/ast" \
        --foundation_model "$folder/qwen" --dtype "$dtype" --steps "$steps" --batch "$batch" \
        --workers 2 --out "$folder/out" --figures none "$@" ||
        echo "$0: $name did not end well" >&2
}
launch task_align.py align
answering=(--init "$folder/out/align.pth" --question_only false --test_snr_db 12 --answer_tokens 2)
launch task_avqa.py avqa "${answering[@]}"
launch task_avqa.py avqa-compiled "${answering[@]}" --compile true

"$python" -m benchmarks.gpu collect "$folder" "$out"
