"""The contract of an export target: a form of a model that some other program reads.

A target is one file in `targets/` and one row in `target_table.py`. It writes, reads its own files
back into checkpoint keys, and computes logits with the very library that its users will use, so
that `exporting.py` can tell whether the exported model is the same model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.export.model_source import SourceModel, complete_weights

# What the largest difference of logits, by the largest logit, may be between two exact
# implementations in fp32 (or four times what rounding does to ours, where that is more).
LARGEST_ERROR = 1e-4
_USUAL_DIVISOR = 8


@dataclass(frozen=True)
class ExportOptions:
    """Choices of the command line; a target that has no use for one given refuses it.

    precision: of the numbers written: fp32, bf16, fp16, or a quantised format of the target's own.
    gguf_eot: the token at which llama.cpp also ends an answer, or "none"; None: by the vocabulary.
    """

    precision: str
    gguf_eot: str | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which matrices are stored; fp32 for quantised formats."""
        return DTYPES.get(self.precision, torch.float32)


@dataclass(frozen=True)
class TargetLogits:
    """Logits of a prompt from the target's own library, fp32 [T, V] each.

    library: its name and version.  at_once: all tokens in one call.  one_by_one: a token a call,
    with the state carried.  None: the library has no such call.
    """

    library: str
    at_once: Tensor | None
    one_by_one: Tensor | None


@dataclass(frozen=True)
class Unavailable:
    """Stands for logits that cannot be computed on this machine.

    reason: in a few words, with what to do.
    """

    reason: str


class ExportTarget(ABC):
    """One form of a model for another program.

    name: what `--to` takes.  reader: the program or class that reads it.  suffix: what the name of
    the file ends in; "": a folder is written.  precisions: what `--precision` may be.
    holds_states: whether trained initial states have a place in it.  library: the hub's name of the
    library that loads it; "": none.
    """

    name: ClassVar[str]
    reader: ClassVar[str]
    suffix: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16")
    holds_states: ClassVar[bool] = False
    library: ClassVar[str] = ""

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        """Returns why the target cannot express the model, None when it can.

        What nobody but RWKV-LM and this program can express is refused here.
        """
        config = model.config
        if config.head_qk:
            return "its copy head (head_qk) has no place there"
        if config.head_size and config.head_size_divisor != _USUAL_DIVISOR:
            return (
                f"it was trained with --head_size_divisor {config.head_size_divisor}, where other "
                f"programs have {_USUAL_DIVISOR} written into their code"
            )
        return None

    @abstractmethod
    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        """Writes the model to `path`, which does not exist; returns remarks for the user."""

    def read_back(self, path: Path) -> dict[str, Tensor]:
        """Reads what `write` wrote: checkpoint keys, RWKV-LM's shapes, numbers as stored."""
        return complete_weights(path, load_weights(path))[0]

    def expected(self, model: SourceModel, options: ExportOptions) -> dict[str, Tensor]:
        """Returns what `read_back` must give, bit for bit; without keys that cannot be compared."""
        return {key: value.to(options.dtype) for key, value in model.weights.items()}

    @abstractmethod
    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        """Returns the logits of every prompt, computed by the target's library from the files.

        In fp32 where the library allows, whatever the stored format: the reference is ours with
        the numbers that `read_back` gives.  Raises CheckpointError when a library that is here
        cannot read what was written.
        """

    def largest_error(self, model: SourceModel, options: ExportOptions) -> float:
        """Returns the relative difference of logits that the library's own arithmetic explains."""
        return LARGEST_ERROR

    def usage(self, name: str, model: SourceModel) -> str:
        """Returns Markdown for the model's card: how what was written as `name` is used."""
        return ""

    def write_states(self, states: Mapping[str, Tensor], path: Path) -> list[tuple[Path, str]]:
        """Writes trained initial states beside the model where it has no place for them.

        path: of the written model.  Returns the files with what each is for.
        """
        file = path / "rwkv-states.pth" if path.is_dir() else path.with_suffix(".states.pth")
        save_weights(file, states, torch.float32)
        return [(file, "trained initial states, for the rwkv package and RWKV Runner")]


def imported(name: str, extra: str) -> Unavailable | None:
    """Returns None when a package can be imported, else how to get it."""
    import importlib.util

    if importlib.util.find_spec(name) is not None:
        return None
    return Unavailable(f"the package {name} is not installed: pip install 'rwkv-train[{extra}]'")


@torch.no_grad()
def logits_of_library(model: Any, tokens: list[int], *, state: str) -> tuple[Tensor, Tensor]:
    """Returns the logits [T, V] of a model of transformers' form: at once, and a token at a time.

    state: the name by which the model takes and gives back its state.
    """
    at_once: Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0]
    carried, rows = None, []
    for token in tokens:
        out = model(torch.tensor([[token]]), use_cache=True, **{state: carried})
        carried = getattr(out, state)
        rows.append(out.logits[0, 0])
    return at_once.float(), torch.stack(rows).float()
