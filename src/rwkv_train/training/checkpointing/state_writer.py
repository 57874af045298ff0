"""Writes captured training states and weights into the project folder, on the first rank."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.finite import is_finite
from rwkv_train.checkpoint.lazy_tensors import picked
from rwkv_train.checkpoint.names import MANIFEST, STATE_SUFFIX, epoch_of, kept_path, merged_path
from rwkv_train.checkpoint.provenance import read_about
from rwkv_train.checkpoint.resume import save_state, state_path
from rwkv_train.checkpoint.retention import KeepRule, Retention
from rwkv_train.config.load import dump_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.config.rwkv_lm.warmup import stored_warmup
from rwkv_train.errors import CheckpointError
from rwkv_train.training.checkpointing.save_job import NotFiniteError
from rwkv_train.training.checkpointing.weight_files import (
    kept_names,
    state_entries,
    stored_dtype,
    write_weight_files,
)
from rwkv_train.version import code_version

# What `about` says of the place in a run, or of the data that a loss was measured on.
_PLACE = ("epoch", "tokens", "val_data")


class StateWriter:
    """Writes what was captured, then deletes the files that it supersedes.

    base: what the state remembers of a frozen base model, see `base_model`. resumed, record: the
    state that the run resumes, and its record of files. lineage: what the state tells of run and
    data, see `prepare`.
    dtype: of the weights that it writes; is_whole_model: they are all that learns.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        length: RunLength,
        base: Mapping[str, Any] | None,
        *,
        resumed: Path | None = None,
        record: Mapping[str, Any] | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._length = length
        self._base = base
        self._lineage = lineage or {}
        self.dtype = stored_dtype(config)
        self.is_whole_model = config.train.train_type == "all"
        folder, safety = Path(config.train.proj_dir), config.safety
        self._retention = Retention(
            folder,
            KeepRule(safety.keep_last, safety.keep_every, safety.keep_last_weights),
            record=record,
            resumed=resumed,
            protected=[] if base is None else [folder / base["path"]],
        )

    def write(self, path: Path, captured: dict[str, Any]) -> None:
        """Writes a state, and next to it the weights `path` unless that is a state itself.

        Raises NotFiniteError or CheckpointError; what was there before is then unchanged.
        """
        # Checked first, and here rather than on the training thread, where it would cost a step:
        # a model that is not finite must not replace anything.
        _require_finite(path, captured)
        step, weights = captured["step"], captured["weights"]
        state = self.plain_values(captured)
        state["weights"] = picked(weights, self.kept_names(weights))
        if path.suffix != STATE_SUFFIX:
            self.write_files(path, weights, self.about(path, step))
            # After the weights: the state names the digest of the file that lies next to it.
            state["weights_digest"] = self.note_weights(path, step)
        state["written"] = self.written()
        saved = state_path(path)
        self.make_way(saved)
        self.note_state(saved, save_state(saved, state), captured)

    def write_weights(
        self, path: Path, weights: dict[str, Tensor], about: Mapping[str, Any]
    ) -> None:
        """Writes the weights `path` and the files that belong next to it; raises as `write`."""
        _require_finite(path, weights)
        self.write_files(path, weights, about)

    def write_files(
        self, path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any]
    ) -> None:
        """Does so for weights that are known to be finite."""
        self.keep_others(path, about)
        write_weight_files(path, weights, self._config, self.dtype, self._base, about)

    def about(self, path: Path, step: int) -> dict[str, Any]:
        """Returns what the weights `path` say of themselves."""
        tokens = step * self._length.tokens_per_step
        return {"epoch": epoch_of(path.name), "step": step, "tokens": tokens}

    def plain_values(self, captured: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what was captured, and what else a state tells."""
        return {
            **captured,
            "config": dump_config(self._config),
            "tokens_per_step": self._length.tokens_per_step,
            "ctx_len": self._config.data.ctx_len,
            "windows": self._length.windows,
            "warmup_steps": stored_warmup(self._config.optim.warmup_steps),
            "optimizer": self._config.optim.optimizer,
            "code_version": code_version(),
            **self._lineage,
            **state_entries(self._config, self._base),
        }

    def kept_names(self, weights: Iterable[str]) -> list[str]:
        """Returns those weights that belong to the state: not a frozen base model's."""
        return [*weights] if self._base is None else kept_names(weights, self._config)

    def written(self) -> dict[str, Any]:
        """Returns the record of files that a state hands on."""
        return self._retention.record()

    def note_weights(self, path: Path, step: int, digest: str | None = None) -> str:
        """Records weights that were just written; returns their digest, read if not given."""
        tokens = step * self._length.tokens_per_step
        digest = digest or _digest(path)
        self._retention.add(path, digest, tokens, step)
        merged = merged_path(path)
        if self._config.train.train_type == "states":
            self._retention.add(merged, _digest(merged), tokens, step)
        return digest

    def make_way(self, saved: Path) -> None:
        """Gives another name to a folder in the place of a state that is none, and says so."""
        if not saved.is_dir() or (saved / MANIFEST).exists():
            return
        kept = kept_path(saved)
        _rename(saved, kept)
        told = f"{saved} is no complete training state: kept as {kept.name}"
        print(told, file=sys.stderr, flush=True)

    def note_state(self, saved: Path, digest: str, captured: Mapping[str, Any]) -> None:
        """Records a state that is complete, and deletes what it supersedes."""
        step = captured["step"]
        self._retention.add(saved, digest, step * self._length.tokens_per_step, step)
        # Last: older files are removed only once the new ones are complete. Not in the middle of
        # bad steps, when an older state is the one to go back to.
        if not captured["guard"].get("bad_in_a_row"):
            self._retention.apply(saved)

    def keep_others(self, path: Path, about: Mapping[str, Any]) -> None:
        """Gives another name to a file at `path` that this run has not written, and says so."""
        found = read_about(path)
        # One of the same place, or the best on the same data, is what is written now: a run that
        # was killed before it had a state left it.
        if found is None or all(found.get(key) == about.get(key) for key in _PLACE):
            return
        # A link leads to a file elsewhere, which stays anyway; a folder is a fault of the save.
        if path.is_symlink() or not path.is_file() or self._retention.is_own(path):
            return
        kept = kept_path(path)
        _rename(path, kept)
        told = f"{path} was not written by this run, as far as it knows: kept as {kept.name}"
        print(told, file=sys.stderr, flush=True)


def _rename(path: Path, kept: Path) -> None:
    try:
        path.rename(kept)
    except OSError as error:
        raise CheckpointError(f"cannot rename {path}: {error.strerror}") from error


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}, just written: {error.strerror}") from error


def _require_finite(path: Path, content: Any, name: str = "") -> None:
    """Raises NotFiniteError when a weight, or a moment of the optimizer, is not finite."""
    if isinstance(content, dict):
        for key, value in content.items():
            _require_finite(path, value, f"{name} of {key}" if name else str(key))
    elif isinstance(content, Tensor) and not is_finite(content):
        raise NotFiniteError(
            f"{path} was not written: {name} holds NaN or infinity; the files saved before are good"
        )
