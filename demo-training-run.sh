#!/usr/bin/env bash
# Trains an RWKV on real text, on whatever this machine has. Start it again after a crash and it
# resumes where it was; it never deletes a checkpoint.
#
#   ./demo-training-run.sh                 text of the Python standard library
#   ./demo-training-run.sh my.jsonl        your own text, one {"text": "..."} a line (or --data my.jsonl)
#   VERSION=7 ./demo-training-run.sh       any variable below can be set like this
#
# Started from any folder: the path of your text and PROJ_DIR are yours, data/ and out/ are made next
# to this script.
#
set -euo pipefail
STARTED_IN=$PWD

fail() {
    echo "error: $1" >&2
    exit 2
}
# from_there PATH: a path that the user has given, from where that was.
from_there() {
    case $1 in /*) echo "$1" ;; *) echo "$STARTED_IN/$1" ;; esac
}
# shown PATH: a path in this folder, in full for who has started elsewhere.
shown() {
    case $1 in /*) echo "$1" ;; *) echo "$HERE$1" ;; esac
}

[ "${1:-}" = --data ] && shift
GIVEN=${1:-}                     # your .jsonl, as you have written it
if [ $# -gt 1 ] || [[ "$GIVEN" == -* ]]; then
    fail "$0 takes one argument, your .jsonl; everything else is a variable: VERSION=7 $0"
fi
CORPUS=${GIVEN:+$(from_there "$GIVEN")}
EXPECTED="give a .jsonl with one {\"text\": \"...\"} a line"
if [ -n "$CORPUS" ]; then
    [ -d "$CORPUS" ] && fail "$GIVEN is a folder; $EXPECTED"
    [ -e "$CORPUS" ] || fail "$GIVEN does not exist; $EXPECTED"
    [ -f "$CORPUS" ] || fail "$GIVEN is not a file, and has to be read more than once; $EXPECTED"
    [ -r "$CORPUS" ] || fail "$GIVEN cannot be read; look at its permissions (ls -l)"
    grep -q '[^[:space:]]' "$CORPUS" || fail "$GIVEN is empty; $EXPECTED"
fi
case ${PYTHON:-} in */*) PYTHON=$(from_there "$PYTHON") ;; esac
PROJ_DIR=${PROJ_DIR:+$(from_there "$PROJ_DIR")}

cd "$(dirname "$0")"
HERE=
[ "$STARTED_IN" = "$PWD" ] || HERE=$PWD/
. ./set-up-environment.sh requirements.txt

FEWEST_SLOTS=40                  # samples' worth of text, so that 5 % to hold out are two

#######################################################################################################
# What to train
#
VERSION=${VERSION:-6}            # RWKV version: 4, 5, 6 or 7
#
# CPU or GPU, and how many. On a CPU the devices are processes.
if [ "${ACCELERATOR:-}" != cpu ]; then
    # "gpu bf16", "gpu fp16" (cards before Ampere) or "cpu"; a card that torch cannot use is told.
    if ! FOUND=$("$PYTHON" -m rwkv_train.find_gpus); then
        echo "To train a small model on the CPU all the same: ACCELERATOR=cpu $0 $GIVEN" >&2
        exit 2
    fi
    ACCELERATOR=${ACCELERATOR:-${FOUND%% *}}
    [ "$ACCELERATOR" = gpu ] && PRECISION=${PRECISION:-${FOUND##* }}
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

NAME=python
# Signs that mean something in a list of data sets, and blanks, have no place in the name of one.
[ -n "$CORPUS" ] && NAME=$(basename "${CORPUS%.jsonl}" | tr -c 'A-Za-z0-9._\n-' _)
DATA=data/$NAME-$TOKENIZER
PROJ_DIR=${PROJ_DIR:-out/L$N_LAYER-D$N_EMBD-v$VERSION-$(basename "$DATA")}
for FOLDER in data "$PROJ_DIR"; do
    mkdir -p "$FOLDER" 2>/dev/null && [ -w "$FOLDER" ] ||
        fail "$(shown "$FOLDER") cannot be written; copy $PWD to a place of your own"
done

if [ -z "$CORPUS" ]; then
    CORPUS=data/python.jsonl
    [ -e "$CORPUS" ] || "$PYTHON" -m rwkv_train.data.text.demo_corpus "$CORPUS"
fi
# The same name may come from another folder, or the text may have changed since.
ORIGIN="$CORPUS $(wc -c < "$CORPUS" | tr -d ' ') bytes"
if [ ! -e "$DATA.idx" ]; then
    # Of a single document nothing is left to train on when it is held out: slots of it are, below.
    HOLD_OUT=()
    [ "$(grep -m 2 -c '[^[:space:]]' "$CORPUS")" -gt 1 ] && HOLD_OUT=(--validation 0.05)
    "$PYTHON" make_data.py "$CORPUS" "$REPEATS" "$CTX_LEN" --output "$DATA" \
        --tokenizer "$TOKENIZER" --seed "$SEED" ${HOLD_OUT[@]+"${HOLD_OUT[@]}"}
    echo "$ORIGIN" > "$DATA.origin"
elif [ -e "$DATA.origin" ] && [ "$(cat "$DATA.origin")" != "$ORIGIN" ]; then
    fail "$PWD/$DATA.* was made from another text ($(cat "$DATA.origin")) than ${GIVEN:-$CORPUS}; \
rename your file to keep both, or remove $PWD/$DATA* and $(shown "$PROJ_DIR")"
fi
TOKENS=$(($(wc -c < "$DATA.bin") / 2))
if [ "$TOKENS" -lt $((FEWEST_SLOTS * CTX_LEN)) ]; then
    rm -f "$DATA".* "${DATA}_val".*
    rmdir "$PROJ_DIR" 2>/dev/null || true
    SHORTER=
    [ "$TOKENS" -lt $((FEWEST_SLOTS * 16)) ] || SHORTER=", or CTX_LEN=$((TOKENS / FEWEST_SLOTS)) $0 $GIVEN"
    fail "${GIVEN:-$CORPUS} has $TOKENS tokens, too few for samples of $CTX_LEN: at least \
$((FEWEST_SLOTS * CTX_LEN)) are needed. Give more text$SHORTER"
fi
VALIDATION=(--val_split 0.05)
if [ -e "${DATA}_val.bin" ] && [ $(($(wc -c < "${DATA}_val.bin") / 2)) -gt "$CTX_LEN" ]; then
    VALIDATION=(--val_data_file "${DATA}_val")
fi

FLAGS=(--proj_dir "$PROJ_DIR" --data_file "$DATA" --data_type binidx "${VALIDATION[@]}"
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
if [ -e "${DATA}_val.idx" ]; then
    "$PYTHON" -m rwkv_train.data.inspect.statistics "${DATA}_val"
fi
PROMPT=$'\n'
[ -n "$GIVEN" ] || PROMPT=$'\ndef '
"$PYTHON" generate.py --load_model "$PROJ_DIR/rwkv-final.pth" --samples 3 --max_tokens 200 \
    --seed "$SEED" "$PROMPT"
echo
# Quoted where need be, so that they can be typed.
PROJ_DIR=$(printf %q "$(shown "$PROJ_DIR")")
case $PYTHON in */*) PYTHON=$(printf %q "$(shown "$PYTHON")") ;; esac
echo "Report: $PROJ_DIR/report.html (open it in a browser)   Weights: $PROJ_DIR/rwkv-final.pth"
echo "Try next:   VERSION=7 $0      another architecture"
[ -n "$GIVEN" ] || echo "            $0 my.jsonl       your own text"
echo "            $PYTHON $(printf %q "${HERE}generate.py") --load_model $PROJ_DIR/rwkv-final.pth 'The '"
