"""Flags of the README's example: what a first run needs, before the hundred others."""

from __future__ import annotations

MOST_USED = {
    "data_file": "what to train on: the prefix that make_data.py wrote",
    "val_data_file": "held-out data of the same kind, for the validation loss",
    "ctx_len": "tokens per sample",
    "rwkv_version": "4, 5, 6 or 7",
    "n_layer": "number of blocks",
    "n_embd": "width",
    "micro_bsz": "samples per process and step; smaller needs less memory",
    "lr_init": "learning rate at the start",
    "lr_final": "learning rate at the end",
    "warmup_steps": "steps in which the rate rises to lr_init",
    "weight_decay": "of the large matrices",
    "proj_dir": "folder of the run; the same command resumes from there",
}


def most_used() -> str:
    """Returns a line for each of these flags."""
    width = max(map(len, MOST_USED)) + 2
    lines = [f"  --{name:{width}}{about}" for name, about in MOST_USED.items()]
    return "\n".join(["most used:", *lines, ""])
