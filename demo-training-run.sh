#!/usr/bin/env bash
# Trains an RWKV on real text, on whatever this machine has. Start it again after a crash and it
# resumes where it was; it never deletes a checkpoint.
#
#   ./demo-training-run.sh                 text of the Python standard library
#   ./demo-training-run.sh my.jsonl        your own text, one {"text": "..."} a line (or --data my.jsonl)
#   VERSION=7 ./demo-training-run.sh       any variable below can be set like this
#
set -euo pipefail
cd "$(dirname "$0")"
. ./set-up-environment.sh requirements.txt

#######################################################################################################
# What to train
#
VERSION=${VERSION:-6}            # RWKV version: 4, 5, 6 or 7
#
# CPU or GPU, and how many. On a CPU the devices are processes.
if [ -z "${ACCELERATOR:-}" ]; then
    ACCELERATOR=$("$PYTHON" -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")')
fi
N_NODE=${N_NODE:-1}              # machines; on each of several set MASTER_ADDR, MASTER_PORT, NODE_RANK
DEVICES=${DEVICES:-1}            # GPUs (or CPU processes) per machine
#
if [ "$ACCELERATOR" = gpu ]; then
    # The model of RWKV-LM's demo: 12 layers, width 768, World vocabulary (about 190 M parameters)
    TOKENIZER=${TOKENIZER:-world}
    N_LAYER=${N_LAYER:-12}
    N_EMBD=${N_EMBD:-768}
    CTX_LEN=${CTX_LEN:-512}
    M_BSZ=${M_BSZ:-16}           # samples per GPU and step; takes about 9 GB here, raise it if it fits
    PRECISION=${PRECISION:-bf16}
    STRATEGY=${STRATEGY:-deepspeed_stage_2}
    REPEATS=${REPEATS:-4}        # passes over the text, each in another order
    LR_INIT=${LR_INIT:-6e-4}
    LR_FINAL=${LR_FINAL:-6e-5}
    EPOCH_STEPS=${EPOCH_STEPS:-100}   # steps per mini-epoch: the unit of logging and saving
else
    # Small enough to learn something on two cores in five minutes
    TOKENIZER=${TOKENIZER:-bytes}
    N_LAYER=${N_LAYER:-4}
    N_EMBD=${N_EMBD:-192}
    CTX_LEN=${CTX_LEN:-256}
    M_BSZ=${M_BSZ:-8}
    PRECISION=${PRECISION:-fp32}
    STRATEGY=${STRATEGY:-auto}   # with DEVICES=2 also ddp, deepspeed_stage_1, _2 or _3
    REPEATS=${REPEATS:-1}
    LR_INIT=${LR_INIT:-3e-3}
    LR_FINAL=${LR_FINAL:-3e-4}
    EPOCH_STEPS=${EPOCH_STEPS:-200}
    CPU_STEPS=${CPU_STEPS:-1000} # length of the run in optimizer steps
fi
GRAD_CP=${GRAD_CP:-0}            # 1: activation checkpointing, less memory and about 30 % slower
EPOCH_SAVE=${EPOCH_SAVE:-1}      # save a checkpoint every so many mini-epochs
SEED=${SEED:-1}
WANDB=${WANDB:-}                 # Weights & Biases project; empty: off
#
# Magic prime, token budget and vocabulary are read from the data; no need to copy them by hand.
#
#######################################################################################################

[ "${1:-}" = --data ] && shift
CORPUS=${1:-}                    # your .jsonl
if [ $# -gt 1 ] || [[ "$CORPUS" == -* ]]; then
    echo "error: $0 takes one argument, your .jsonl; everything else is a variable: VERSION=7 $0" >&2
    exit 2
fi
if [ -n "$CORPUS" ] && [ ! -f "$CORPUS" ]; then
    echo "error: $CORPUS does not exist; give a .jsonl with one {\"text\": \"...\"} a line" >&2
    exit 2
fi
if [ -z "$CORPUS" ]; then
    DATA=data/python-$TOKENIZER
    CORPUS=data/python.jsonl
else
    DATA=data/$(basename "${CORPUS%.jsonl}")-$TOKENIZER
fi
PROJ_DIR=${PROJ_DIR:-out/L$N_LAYER-D$N_EMBD-v$VERSION-$(basename "$DATA")}
mkdir -p data

if [ "$CORPUS" = data/python.jsonl ] && [ ! -e "$CORPUS" ]; then
    "$PYTHON" -m rwkv_train.data.text.demo_corpus "$CORPUS"
fi
if [ ! -e "$DATA.idx" ]; then
    "$PYTHON" make_data.py "$CORPUS" "$REPEATS" "$CTX_LEN" --output "$DATA" \
        --tokenizer "$TOKENIZER" --seed "$SEED" --validation 0.05
fi

FLAGS=(--proj_dir "$PROJ_DIR" --data_file "$DATA" --data_type binidx --val_data_file "${DATA}_val"
       --rwkv_version "$VERSION" --n_layer "$N_LAYER" --n_embd "$N_EMBD" --ctx_len "$CTX_LEN"
       --micro_bsz "$M_BSZ" --epoch_save "$EPOCH_SAVE" --epoch_steps "$EPOCH_STEPS"
       --lr_init "$LR_INIT" --lr_final "$LR_FINAL" --warmup_steps 10 --beta1 0.9 --beta2 0.99
       --adam_eps 1e-18 --weight_decay 0.001 --grad_clip 1.0 --random_seed "$SEED"
       --num_nodes "$N_NODE" --devices "$DEVICES" --accelerator "$ACCELERATOR"
       --precision "$PRECISION" --strategy "$STRATEGY" --grad_cp "$GRAD_CP" --wandb "$WANDB")
if [ "$ACCELERATOR" = cpu ]; then
    FLAGS+=(--exit_tokens $((CPU_STEPS * CTX_LEN * M_BSZ * DEVICES * N_NODE)))
fi

# The initial weights, written once. Put a base model there as rwkv-init.pth to finetune it.
if [ ! -e "$PROJ_DIR/rwkv-init.pth" ]; then
    ./demo-training-prepare.sh "${FLAGS[@]}"
fi

"$PYTHON" train.py "${FLAGS[@]}" --train_stage 3

# What it has learned
echo
"$PYTHON" -m rwkv_train.data.inspect.statistics "${DATA}_val"
"$PYTHON" generate.py --load_model "$PROJ_DIR/rwkv-final.pth" --samples 3 --max_tokens 200 \
    --seed "$SEED" $'\ndef '
echo
echo "Loss curve: $PROJ_DIR/loss.png   Log: $PROJ_DIR/train_log.txt   Weights: $PROJ_DIR/rwkv-final.pth"
echo "Try next:   VERSION=7 ./demo-training-run.sh      another architecture"
echo "            ./demo-training-run.sh my.jsonl       your own text"
echo "            $PYTHON generate.py --load_model $PROJ_DIR/rwkv-final.pth 'import '"
