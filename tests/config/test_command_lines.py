"""The command lines that RWKV-LM's users run (cli.md, section 12), unchanged against our flags."""

from __future__ import annotations

import shlex

import pytest

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import translate

DEMO = (
    "--data_file data/minipile --data_type binidx --vocab_size 65536 --ctx_len 512"
    " --my_exit_tokens 1498226207 --magic_prime 2926181 --n_layer 12 --n_embd 768 --num_nodes 1"
    " --my_testing x070 "
)
PREPARE = (
    ' --wandb "" --proj_dir out/L12-D768-x070 --epoch_count 1 --epoch_begin 0 --epoch_save 1'
    " --weight_decay 0 --micro_bsz 1 --lr_init 1e-5 --lr_final 1e-5 --warmup_steps 10 --beta1 0.9"
    " --beta2 0.99 --adam_eps 1e-8 --accelerator cpu --devices 1 --precision bf16"
    " --strategy deepspeed_stage_2 --grad_cp 1 "
)
RUN = (
    " --load_model 0 --wandb Test --proj_dir out/L12-D768-x070 --epoch_count 999999"
    " --epoch_begin 0 --epoch_save 10 --micro_bsz 16 --lr_init 6e-4 --lr_final 6e-5"
    " --warmup_steps 10 --beta1 0.9 --beta2 0.99 --adam_eps 1e-18 --weight_decay 0.001"
    " --accelerator gpu --devices 1 --precision bf16 --strategy deepspeed_stage_2 --grad_cp 1"
    " --enable_progress_bar True "
)
V5 = " --pre_ffn 0 --head_qk 0 --my_pile_edecay 0 --head_size_a 64 "
V7 = " --head_size 64 --head_chunk 0 --kernel @rwkv3 "
PILE = (
    " --data_file data/pile --vocab_size 50304 --ctx_len 4096 --my_exit_tokens 332115325534"
    " --magic_prime 81082817 --micro_bsz 30 --devices 8 --lr_init 8e-4 --lr_final 3e-5"
    " --weight_decay 0.1 --adam_eps 1e-18 --epoch_save 50 --wandb RWKV-7-Pile "
)
FINETUNE = (
    " --n_layer 24 --n_embd 2048 --lr_init 1e-5 --lr_final 1e-5 --my_exit_tokens 200499"
    " --magic_prime 389 --ctx_len 512 "
)
DEMO_FIELDS = {
    "data_file": "data/minipile",
    "data_type": "binidx",
    "vocab_size": 65536,
    "ctx_len": 512,
    "exit_tokens": 1498226207,
    "magic_prime": 2926181,
    "n_layer": 12,
    "n_embd": 768,
    "num_nodes": 1,
    "rwkv_version": "7",
    "proj_dir": "out/L12-D768-x070",
    "head_size": 64,
    "strategy": "deepspeed_stage_2",
    "precision": "bf16",
    "grad_cp": True,
    "epoch_begin": None,
    "load_model": None,
}
PREPARE_FIELDS = {
    "train_stage": 1,
    "wandb": None,
    "epoch_save": 1,
    "weight_decay": 0.0,
    "micro_bsz": 1,
    "lr_init": 1e-5,
    "lr_final": 1e-5,
    "warmup_steps": 10,
    "adam_eps": 1e-8,
    "accelerator": "cpu",
    "devices": 1,
}
RUN_FIELDS = {
    "train_stage": 3,
    "wandb": "Test",
    "epoch_count": None,
    "epoch_save": 10,
    "micro_bsz": 16,
    "lr_init": 6e-4,
    "lr_final": 6e-5,
    "warmup_steps": 10,
    "beta1": 0.9,
    "beta2": 0.99,
    "adam_eps": 1e-18,
    "weight_decay": 0.001,
    "accelerator": "gpu",
    "devices": 1,
    "enable_progress_bar": True,
    "sampling": None,
    "special_lr_factor": None,
}
PILE_FIELDS = {
    "vocab_size": 50304,
    "ctx_len": 4096,
    "exit_tokens": 332115325534,
    "magic_prime": 81082817,
    "micro_bsz": 30,
    "devices": 8,
    "lr_init": 8e-4,
    "lr_final": 3e-5,
    "weight_decay": 0.1,
    "epoch_save": 50,
    "wandb": "RWKV-7-Pile",
}
FINETUNE_FIELDS = {
    "n_layer": 24,
    "n_embd": 2048,
    "lr_init": 1e-5,
    "lr_final": 1e-5,
    "exit_tokens": 200499,
    "magic_prime": 389,
}
V4NEO_FINETUNE = (
    "--load_model base.pth --data_file train.npy --data_type numpy --vocab_size 50277"
    " --ctx_len 1024 --epoch_steps 1000 --epoch_count 1000 --epoch_begin 0 --epoch_save 5"
    " --micro_bsz 8 --n_layer 24 --n_embd 2048 --pre_ffn 0 --head_qk 0 --lr_init 1e-5"
    " --lr_final 1e-5 --warmup_steps 0 --beta1 0.9 --beta2 0.999 --adam_eps 1e-8"
    " --accelerator gpu --devices 8 --precision bf16 --strategy deepspeed_stage_2 --grad_cp 0"
)
V4NEO_SCRATCH = (
    '--load_model "" --data_file text.txt --data_type utf-8 --vocab_size 0 --ctx_len 512'
    " --epoch_steps 5000 --epoch_count 500 --epoch_save 5 --micro_bsz 12 --n_layer 6"
    " --n_embd 512 --lr_init 8e-4 --lr_final 1e-5 --strategy ddp_find_unused_parameters_false"
)

LINES = {
    "prepare, v5": (DEMO + PREPARE + V5 + "--my_pile_stage 1", DEMO_FIELDS | PREPARE_FIELDS),
    "prepare, v7": (
        DEMO + PREPARE + "--train_stage 1 --head_size 64",
        DEMO_FIELDS | PREPARE_FIELDS | {"epoch_count": 1},
    ),
    "run, v5": (
        DEMO + RUN + V5 + "--my_pile_stage 3 --ds_bucket_mb 2",
        DEMO_FIELDS | RUN_FIELDS | {"ds_bucket_mb": 2},
    ),
    "run, v7": (
        DEMO + RUN + V7 + "--train_stage 3",
        DEMO_FIELDS | RUN_FIELDS | {"head_chunk": None, "ds_bucket_mb": 200},
    ),
    "Pile, v5": (
        DEMO + RUN + V5 + "--my_pile_stage 3 --ds_bucket_mb 2" + PILE,
        DEMO_FIELDS | RUN_FIELDS | PILE_FIELDS | {"data_file": "data/pile", "ds_bucket_mb": 2},
    ),
    "Pile, v7": (
        DEMO + RUN + V7 + "--train_stage 3" + PILE,
        DEMO_FIELDS | RUN_FIELDS | PILE_FIELDS | {"data_file": "data/pile"},
    ),
    "finetune, v5": (
        DEMO + RUN + V5 + "--my_pile_stage 3" + FINETUNE,
        DEMO_FIELDS | RUN_FIELDS | FINETUNE_FIELDS,
    ),
    "finetune, v7": (
        DEMO + RUN + V7 + "--train_stage 3" + FINETUNE,
        DEMO_FIELDS | RUN_FIELDS | FINETUNE_FIELDS,
    ),
    "state tuning": (
        DEMO + RUN + V5 + "--my_pile_stage 3" + FINETUNE + "--my_testing x060"
        " --train_type states --load_partial 1 --lr_init 1 --lr_final 0.01 --warmup_steps 10",
        DEMO_FIELDS
        | RUN_FIELDS
        | FINETUNE_FIELDS
        | {
            "rwkv_version": "6",
            "train_type": "states",
            "load_partial": True,
            "lr_init": 1.0,
            "lr_final": 0.01,
        },
    ),
    "RWKV-6": (
        DEMO + RUN + V5 + "--my_pile_stage 3 --my_testing x060",
        DEMO_FIELDS | RUN_FIELDS | {"rwkv_version": "6"},
    ),
    "RWKV-5": (
        DEMO + RUN + V5 + "--my_pile_stage 3 --my_testing x052",
        DEMO_FIELDS | RUN_FIELDS | {"rwkv_version": "5"},
    ),
    "v4neo finetune": (
        V4NEO_FINETUNE,
        {
            "load_model": "base.pth",
            "data_file": "train.npy",
            "data_type": "numpy",
            "vocab_size": 50277,
            "ctx_len": 1024,
            "epoch_steps": 1000,
            "epoch_count": 1000,
            "epoch_begin": None,
            "epoch_save": 5,
            "micro_bsz": 8,
            "n_layer": 24,
            "n_embd": 2048,
            "lr_init": 1e-5,
            "lr_final": 1e-5,
            "warmup_steps": 0,
            "beta2": 0.999,
            "adam_eps": 1e-8,
            "accelerator": "gpu",
            "devices": 8,
            "precision": "bf16",
            "strategy": "deepspeed_stage_2",
            "grad_cp": False,
            "rwkv_version": None,
            "train_stage": None,
        },
    ),
    "v4neo from scratch": (
        V4NEO_SCRATCH,
        {
            "load_model": None,
            "data_type": "utf-8",
            "vocab_size": None,
            "ctx_len": 512,
            "epoch_steps": 5000,
            "epoch_count": 500,
            "epoch_save": 5,
            "micro_bsz": 12,
            "n_layer": 6,
            "n_embd": 512,
            "lr_init": 8e-4,
            "lr_final": 1e-5,
            "strategy": "ddp",
        },
    ),
}


@pytest.mark.parametrize("purpose", LINES)
def test_the_command_line_loads_with_its_fields(purpose):
    line, expected = LINES[purpose]
    config = load_config(translate(shlex.split(line)).argv)
    loaded = {name: getattr(getattr(config, fields()[name].section), name) for name in expected}
    assert loaded == expected
    check_fields(config)
