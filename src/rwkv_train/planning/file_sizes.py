"""Bytes that a run and its data take on a disk."""

from __future__ import annotations

from typing import NamedTuple

from rwkv_train.config.copy_places import CopyPlace, copy_places
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import run_length
from rwkv_train.planning.held_parameters import count_elements, moment_bytes
from rwkv_train.planning.kept_activations import Learning
from rwkv_train.planning.parameter_table import parameter_table

_FP32 = 4
_WIDTHS = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
# .idx: its header; a length and a place of every item, and where every document begins.
_IDX_HEADER, _IDX_ITEM = 34 + 8, 4 + 8 + 8
# The largest vocabulary whose ids are written as uint16.
_UINT16_IDS = 1 << 16


class RunFiles(NamedTuple):
    """Bytes of a run's files, without the few kilobytes around tensors.

    weights: of rwkv-N.pth and what lies next to it; weight_files: how many there are at the end,
        the first and the final one among them; None: one a saved mini-epoch, without an end.
    state: of one .state; states: how many are kept, rwkv-final.state among them.
    """

    weights: int
    weight_files: int | None
    state: int
    states: int

    @property
    def most(self) -> int | None:
        """All of them just before the end, while the last state is written; None: no end."""
        if self.weight_files is None:
            return None
        return self.weights * self.weight_files + self.state * self.states


class CopySize(NamedTuple):
    """Second copies in a place of --state_copies.

    states: that lie there at most, rwkv-final.state or the one that is written among them;
    bytes: of all, with the weights of the end where these are copied too.
    """

    place: CopyPlace
    states: int
    bytes: int


class DataSize(NamedTuple):
    """Bytes of a binidx pair."""

    bin: int
    idx: int


def run_files(config: ResolvedConfig) -> RunFiles:
    """Returns the sizes and numbers of checkpoints and training states.

    Raises ConfigError for a version whose tensors are not listed.
    """
    found, kind = count_elements(config), config.train.train_type
    width = _FP32 if config.train.save_fp32 else _WIDTHS[config.hardware.precision]
    base = parameter_table(config.model).total
    weights, kept = width * base, found.learnt
    if kind == "states":
        # The states alone, and next to them the model with them.
        weights += 2 * width * found.learnt
    elif kind == "lora":
        pairs = config.model.n_layer * sum(
            config.adapter.lora_r * sum(tensor.shape)
            for tensor in Learning(config).adapted.values()
        )
        weights += _FP32 * pairs
        # PiSSA's start is kept too, which does not learn.
        kept += pairs if config.adapter.lora_init == "pissa" else 0
    else:
        kept = base
    state = _FP32 * kept + moment_bytes(config, found)
    safety = config.safety
    states = _kept_states(config, safety.keep_last, safety.keep_every)
    return RunFiles(weights, _weight_files(config), state, states)


def copy_sizes(config: ResolvedConfig) -> tuple[CopySize, ...]:
    """Returns what the places of --state_copies take; a partner machine is sent states alone.

    Raises ConfigError as `run_files`.
    """
    files = run_files(config)
    found = []
    for place in copy_places(config.safety.state_copies):
        states = _kept_states(config, place.keep_last, place.keep_every)
        weights = 0 if place.on_partner else files.weights
        found.append(CopySize(place, states, states * files.state + weights))
    return tuple(found)


def _weight_files(config: ResolvedConfig) -> int | None:
    length, train, keep = run_length(config), config.train, config.safety.keep_last_weights
    # A fresh run begins with rwkv-init.pth, others have a model elsewhere.
    others = 2 if train.load_model is None and train.train_type == "all" else 1
    if length.total_steps is None:
        return None if keep is None else keep + others
    # The end of the run is its final file, also where a mini-epoch ends there.
    epochs = max(0, length.total_steps - 1) // length.epoch_steps
    numbered = -(-epochs // train.epoch_save) if train.epoch_save else 0
    return others + (numbered if keep is None else min(numbered, keep))


def _kept_states(config: ResolvedConfig, keep_last: int, keep_every: int | None) -> int:
    steps = run_length(config).total_steps
    for_good = 0 if keep_every is None or steps is None else steps // keep_every
    return keep_last + 1 + for_good


def data_size(tokens: float, documents: float, vocab_size: int) -> DataSize:
    """Returns the sizes of the pair that make_data.py writes for so many tokens and documents."""
    width = 2 if vocab_size <= _UINT16_IDS else 4
    return DataSize(int(tokens * width), _IDX_HEADER + int(documents) * _IDX_ITEM)
