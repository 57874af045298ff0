#!/usr/bin/env bash
# Writes the initial weights rwkv-init.pth of a run; demo-training-run.sh calls it when they are
# missing. Arguments are flags of train.py.
#   ./demo-training-prepare.sh --proj_dir out/mine --data_file data/mine --n_layer 12 --n_embd 768
set -euo pipefail
cd "$(dirname "$0")"
. ./set-up-environment.sh requirements.txt
exec "$PYTHON" train.py "$@" --train_stage 1
