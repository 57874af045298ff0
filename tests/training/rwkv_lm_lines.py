"""Command lines of RWKV-LM: its demo scripts of v5 and v7, and two of v4neo."""

from __future__ import annotations

import shlex

DEMO = (
    "--data_file data/minipile --data_type binidx --vocab_size 65536 --ctx_len 512"
    " --my_exit_tokens 1498226207 --magic_prime 2926181 --n_layer 12 --n_embd 768 --num_nodes 1"
    " --my_testing x070 "
)
PREPARE = {
    "v5": DEMO + '--wandb "" --proj_dir out/L12-D768-x070 --my_pile_stage 1 --epoch_count 1'
    " --epoch_begin 0 --epoch_save 1 --weight_decay 0 --head_size_a 64 --micro_bsz 1 --pre_ffn 0"
    " --head_qk 0 --lr_init 1e-5 --lr_final 1e-5 --warmup_steps 10 --beta1 0.9 --beta2 0.99"
    " --adam_eps 1e-8 --my_pile_edecay 0 --accelerator cpu --devices 1 --precision bf16"
    " --strategy deepspeed_stage_2 --grad_cp 1",
    "v7": DEMO + '--wandb "" --proj_dir out/L12-D768-x070 --train_stage 1 --epoch_count 1'
    " --epoch_begin 0 --epoch_save 1 --weight_decay 0 --head_size 64 --micro_bsz 1 --lr_init 1e-5"
    " --lr_final 1e-5 --warmup_steps 10 --beta1 0.9 --beta2 0.99 --adam_eps 1e-8"
    " --accelerator cpu --devices 1 --precision bf16 --strategy deepspeed_stage_2 --grad_cp 1",
}
RUN = {
    "v5": DEMO + "--load_model 0 --wandb Test --proj_dir out/L12-D768-x070 --my_pile_stage 3"
    " --epoch_count 999999 --epoch_begin 0 --epoch_save 10 --micro_bsz 16 --pre_ffn 0 --head_qk 0"
    " --lr_init 6e-4 --lr_final 6e-5 --warmup_steps 10 --beta1 0.9 --beta2 0.99 --adam_eps 1e-18"
    " --my_pile_edecay 0 --weight_decay 0.001 --head_size_a 64 --accelerator gpu --devices 1"
    " --precision bf16 --strategy deepspeed_stage_2 --grad_cp 1 --enable_progress_bar True"
    " --ds_bucket_mb 2",
    "v7": DEMO + "--load_model 0 --wandb Test --proj_dir out/L12-D768-x070 --train_stage 3"
    " --epoch_count 999999 --epoch_begin 0 --epoch_save 10 --micro_bsz 16 --lr_init 6e-4"
    " --lr_final 6e-5 --warmup_steps 10 --beta1 0.9 --beta2 0.99 --adam_eps 1e-18"
    " --weight_decay 0.001 --head_size 64 --head_chunk 0 --kernel @rwkv3 --accelerator gpu"
    " --devices 1 --precision bf16 --strategy deepspeed_stage_2 --grad_cp 1"
    " --enable_progress_bar True",
}
# The finetune line of the documentation, for the states alone.
TUNE_STATES = RUN["v5"] + " --train_type states --load_partial 1"
V4NEO_FROM_TEXT = (
    '--load_model "" --wandb "" --proj_dir out --data_file enwik8 --data_type utf-8 --vocab_size 0'
    " --ctx_len 512 --epoch_steps 5000 --epoch_count 500 --epoch_begin 0 --epoch_save 5"
    " --micro_bsz 12 --n_layer 6 --n_embd 512 --pre_ffn 0 --head_qk 0 --lr_init 8e-4"
    " --lr_final 1e-5 --warmup_steps 0 --beta1 0.9 --beta2 0.99 --adam_eps 1e-8 --accelerator gpu"
    " --devices 1 --precision bf16 --grad_cp 0 --strategy ddp_find_unused_parameters_false"
)
V4NEO_FINETUNE = (
    "--load_model base.pth --data_file train.npy --data_type numpy --vocab_size 50277"
    " --ctx_len 1024 --epoch_steps 1000 --epoch_count 1000 --epoch_begin 0 --epoch_save 5"
    " --micro_bsz 8 --n_layer 24 --n_embd 2048 --pre_ffn 0 --head_qk 0 --lr_init 1e-5"
    " --lr_final 1e-5 --warmup_steps 0 --beta1 0.9 --beta2 0.999 --adam_eps 1e-8 --accelerator gpu"
    " --devices 8 --precision bf16 --strategy deepspeed_stage_2 --grad_cp 0 --my_pile_stage 0"
)


def changed(line: str, **changes: object) -> list[str]:
    """The command line with other values for flags that stand in it already, or new ones."""
    words = shlex.split(line)
    flags = dict(zip(words[::2], words[1::2], strict=True))
    flags.update({f"--{name}": str(value) for name, value in changes.items()})
    return [word for flag in flags.items() for word in flag]
