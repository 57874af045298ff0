"""The ways to train, as one list: what README's table "What works where" and its tests are made of.

python -m tests.training.modes     # writes the table into README.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkout import ROOT

VERSIONS = ("4", "5", "6", "7")
# name in a cell of the table -> flags
STRATEGIES: Mapping[str, dict[str, object]] = {
    "1": {"devices": 1, "micro_bsz": 4},
    "Z2": {"devices": 2, "micro_bsz": 2, "strategy": "deepspeed_stage_2"},
    "Z3": {"devices": 2, "micro_bsz": 2, "strategy": "deepspeed_stage_3"},
}
# tried for two rows only, whose cells do not show it
DDP = {"devices": 2, "micro_bsz": 2, "strategy": "ddp"}
BEGIN, END = "<!-- modes: python -m tests.training.modes -->\n", "<!-- end of modes -->\n"


@dataclass(frozen=True)
class Mode:
    """One way to train; its cells are all versions under all strategies.

    name, shown: what the table says; key: in the tests' names.
    flags: added to a small run; {data}, {masked}: the corpus; {folder}: the run's.
    prepare: writes what the run starts from, given a base model's weights and the run's folder.
    first: flags of a run before, of one process.
    rounding: by how much of its way a weight may miss that of one process; None: what Muon moves
    is compared as a whole, because its iteration in bf16 enlarges a last bit of the gradient
    where a matrix has small singular values.
    """

    key: str
    name: str
    flags: dict[str, object] = field(default_factory=dict)
    shown: str | None = None
    prepare: Callable[[dict[str, Tensor], Path], None] | None = None
    first: dict[str, object] | None = None
    rounding: float | None = 5e-3

    @property
    def command(self) -> str:
        """The flags as the table shows them."""
        return "" if self.shown is None else f"`{self.shown}`"


@dataclass(frozen=True)
class Excluded:
    """Flags that exclude each other, and words of the reason; `why` is for the table."""

    name: str
    flags: dict[str, object]
    words: tuple[str, ...]
    why: str


def _as_init(base: dict[str, Tensor], folder: Path) -> None:
    torch.save(base, folder / "rwkv-init.pth")


def _incomplete_safetensors(base: dict[str, Tensor], folder: Path) -> None:
    kept = {name: value for name, value in base.items() if name != "blocks.1.ffn.key.weight"}
    save_file(kept, folder / "base.safetensors")


def _as_small(base: dict[str, Tensor], folder: Path) -> None:
    torch.save(base, folder / "small.pth")


MODES = (
    Mode("pretrain", "Pretrain"),
    Mode("finetune", "Finetune", prepare=_as_init, shown="PROJ_DIR/rwkv-init.pth"),
    Mode(
        "partial",
        "Finetune an incomplete file",
        prepare=_incomplete_safetensors,
        flags={"load_model": "{folder}/base.safetensors", "load_partial": 1},
        shown="--load_model FILE.safetensors --load_partial 1",
    ),
    Mode(
        "states",
        "Tune initial states",
        prepare=_as_init,
        flags={"train_type": "states", "load_partial": 1, "lr_init": 1, "lr_final": 0.01},
        shown="--train_type states --load_partial 1",
    ),
    Mode(
        "lora",
        "Low-rank adapters",
        prepare=_as_init,
        flags={"train_type": "lora", "lora_r": 4, "lora_train": "ln"},
        shown="--train_type lora --lora_r r",
    ),
    Mode(
        "transfer",
        "Start from a smaller model",
        prepare=_as_small,
        first={"train_stage": 1, "load_model": "{folder}/small.pth", "n_layer": 3, "n_embd": 64},
        flags={"n_layer": 3, "n_embd": 64},
        shown="--train_stage 1 --load_model SMALL.pth, then without",
    ),
    Mode(
        "masks",
        "Loss masks",
        flags={"data_file": "{masked}", "loss_mask": "on"},
        shown="--loss_mask on",
    ),
    Mode(
        "mixture",
        "Mixture with changing weights",
        flags={"data_file": "{data}:0.9..0.5,{data}_val:0.1..0.5"},
        shown="--data_file A:0.9..0.5,B:0.1..0.5",
    ),
    Mode(
        "documents",
        "Reset at documents",
        flags={"reset_at_documents": 1},
        shown="--reset_at_documents 1",
    ),
    Mode("chunks", "Long context in chunks", flags={"chunk_len": 6}, shown="--chunk_len N"),
    Mode(
        "windows",
        "Truncated backpropagation",
        flags={"chunk_len": 4, "bptt_chunks": 2, "epoch_steps": 4},
        shown="--chunk_len N --bptt_chunks k",
    ),
    Mode(
        "validation",
        "Validation",
        flags={"val_data_file": "{data}_val", "val_samples": 5, "val_every": 1},
        shown="--val_data_file PREFIX --val_every n",
    ),
    Mode(
        "held-out",
        "Validation on held-out slots, the best kept",
        flags={"val_split": 20, "val_every": 1, "save_best": 1},
        shown="--val_split 0.01 --save_best 1",
    ),
    Mode("muon", "Muon", flags={"optimizer": "muon"}, shown="--optimizer muon", rounding=None),
    Mode(
        "recompute",
        "Activation checkpointing, accumulation",
        flags={"grad_cp": 1, "accumulate_grad_batches": 2},
        shown="--grad_cp 1 --accumulate_grad_batches n",
    ),
)
EXCLUDED = (
    Excluded(
        "states-muon",
        {"train_type": "states", "optimizer": "muon"},
        ("muon", "states"),
        "Muon orthogonalises matrices; initial states are none",
    ),
    Excluded(
        "lora-muon",
        {"train_type": "lora", "optimizer": "muon"},
        ("muon", "lora"),
        "Muon orthogonalises whole matrices, which stay as they are",
    ),
    Excluded(
        "states-windows",
        {"train_type": "states", "chunk_len": 4, "bptt_chunks": 2},
        ("bptt_chunks", "states"),
        "only the first window of a row starts from the trained state",
    ),
    Excluded(
        "states-documents",
        {"train_type": "states", "reset_at_documents": 1},
        ("reset_at_documents", "states"),
        "a document's start forgets the trained state",
    ),
    Excluded(
        "windows-alone",
        {"bptt_chunks": 2},
        ("bptt_chunks", "chunk_len"),
        "without `--chunk_len`, in which windows are counted",
    ),
    Excluded(
        "8-bit-on-a-cpu",
        {"optimizer": "adam8bit"},
        ("adam8bit", "GPU"),
        "on a CPU; its library computes on GPUs",
    ),
    Excluded(
        "mask-missing",
        {"loss_mask": "on"},
        ("loss_mask", ".mask"),
        "where the data has no mask next to it",
    ),
)


def table() -> str:
    """README's table, Markdown."""
    columns = [f"RWKV-{version}" for version in VERSIONS]
    lines = [f"| mode | flags | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    cells = " | ".join([", ".join(STRATEGIES)] * len(VERSIONS))
    lines += [f"| {mode.name} (`{mode.key}`) | {mode.command} | {cells} |" for mode in MODES]
    lines += [
        "",
        "1: one process; Z2, Z3: two processes under DeepSpeed's ZeRO 2 and 3; all on a CPU. Each"
        " is a test,",
        "`tests/training/test_modes.py::test_cell[MODE-VERSION-STRATEGY]`: the run has the losses"
        " and weights of one process,",
        "and resuming from its middle ends with the same bits. What is refused, with the reason:",
        "",
    ]
    for excluded in EXCLUDED:
        flags = " ".join(f"--{name} {value}" for name, value in excluded.flags.items())
        lines.append(f"* `{flags}`: {excluded.why}.")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """README's text with the present table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
