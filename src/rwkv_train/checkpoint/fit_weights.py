"""Fits loaded weights to a model: every key is accounted for, or one message lists what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from rwkv_train.errors import CheckpointError

# Keys named of each kind: a wrong size makes nearly all of them wrong, and the hints come last.
_SHOWN = 10


@dataclass(frozen=True)
class FitReport:
    """The keys that `fit_weights` did more with than copy.

    filled: keys the checkpoint lacks, which kept the model's value.
    reshaped: keys whose size-1 axes differed.
    """

    filled: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns one line for the run's header; empty when everything was copied as it is."""
        parts = []
        if self.filled:
            parts.append(f"{_listed(self.filled)} kept the initial value")
        if self.reshaped:
            parts.append(f"{_listed(self.reshaped)} reshaped")
        return "; ".join(parts)


def fit_weights(
    model_state: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    *,
    partial: bool | None,
    optional: Sequence[str] = (),
) -> tuple[dict[str, Tensor], FitReport]:
    """Returns tensors for every key of `model_state`, in its order, and a report.

    loaded: as `load_weights` returns it; tensors keep their dtype. Shapes may differ from the
        model's by axes of size 1.
    partial: keys that `loaded` lacks keep the model's value, unless a whole layer is missing.
        None: they do not, in a program without the flag for it.
    optional: patterns (`*` matches anything) of keys that may be missing in any case.

    Raises CheckpointError listing all missing, unexpected and mis-shaped keys with the remedy.
    """
    missing = [key for key in model_state if key not in loaded]
    required = [key for key in missing if not _matches(key, optional)]
    unexpected = [key for key in loaded if key not in model_state]
    misshaped = [
        key
        for key, tensor in model_state.items()
        if key in loaded and _without_ones(loaded[key]) != _without_ones(tensor)
    ]
    lost_layers = _lost_layers(model_state, loaded, optional)
    # Unexpected keys fail with `partial` as well, as in RWKV-LM.
    if unexpected or misshaped or lost_layers or (required and not partial):
        raise CheckpointError(
            _complaint(model_state, loaded, required, unexpected, misshaped, lost_layers, partial)
        )
    fitted, reshaped = {}, []
    for key, tensor in model_state.items():
        value = loaded.get(key, tensor)
        if value.shape != tensor.shape:
            # Exports write [D] where RWKV-LM has [1, 1, D], and the reverse.
            value = value.reshape(tensor.shape)
            reshaped.append(key)
        fitted[key] = value
    return fitted, FitReport(tuple(missing), tuple(reshaped))


def _lost_layers(
    model_state: Mapping[str, Tensor], loaded: Mapping[str, Tensor], optional: Sequence[str]
) -> list[str]:
    """Returns the layers of the model of which `loaded` holds nothing that it must.

    Filling one would replace what the base model learnt by random values: a file that holds only
    initial states is no base model.
    """
    # Trained states do not count: a model without them starts from the empty state.
    present: dict[str, bool] = {}
    for key in model_state:
        if not _matches(key, (*optional, "*.time_state")):
            layer = _layer_of(key)
            present[layer] = present.get(layer, False) or key in loaded
    return [layer for layer, found in present.items() if not found]


def _layer_of(key: str) -> str:
    """Returns emb, ln_out, head …, and within a block blocks.N.att, blocks.N.ffn, blocks.N.ln1 …"""
    parts = key.split(".")
    return ".".join(parts[:3]) if parts[0] == "blocks" else parts[0]


def _complaint(
    model_state: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    required: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[str],
    lost_layers: Sequence[str],
    partial: bool | None,
) -> str:
    lines = ["the checkpoint does not fit the model:"]
    # Without `partial` the keys of a lost layer are among the missing ones already.
    if lost_layers and partial:
        lines.append(f"  whole layers missing: {_listed(lost_layers)}")
    elif required:
        lines.append(f"  missing: {_listed(required)}")
    if unexpected:
        lines.append(f"  unexpected: {_listed(unexpected)}")
    shapes = [
        f"{key} {list(loaded[key].shape)} (expected {list(model_state[key].shape)})"
        for key in misshaped
    ]
    if shapes:
        lines.append(f"  of another shape: {_listed(shapes)}")
    hints = _hints(model_state, loaded, required, unexpected, misshaped, lost_layers, partial)
    lines += [f"  {hint}" for hint in hints]
    return "\n".join(lines)


def _hints(
    model_state: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    required: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[str],
    lost_layers: Sequence[str],
    partial: bool | None,
) -> list[str]:
    """Returns remedies, the most specific one first."""
    hints = []
    layers, expected_layers = _block_count(loaded), _block_count(model_state)
    if layers != expected_layers:
        hints.append(f"the file has {layers} layers, --n_layer {expected_layers} was given")
    if "emb.weight" in loaded and "emb.weight" in model_state:
        flags = ("--vocab_size", "--n_embd")
        sizes = zip(flags, loaded["emb.weight"].shape, model_state["emb.weight"].shape)
        for flag, size, expected in sizes:
            if size != expected:
                hints.append(f"the file has {flag} {size}, the model was built with {expected}")
    if loaded and all("time_sta" in key for key in loaded):
        hints.append("the file holds only trained states: load its base model, then the states")
    elif unexpected and all("time_state" in key for key in unexpected):
        hints.append("the file holds trained states; build the model with states to use them")
    # A wrong size explains everything else: further advice would only lead away from it.
    if hints:
        return hints
    # Nothing fills a tensor of another shape.
    if required and partial is False and not (unexpected or misshaped or lost_layers):
        hints.append("--load_partial 1 fills what is missing with fresh initial values")
    else:
        # A run's version and sizes are those of its file, and others were refused before.
        hints.append("no flag mends that: give the file that this one was made from")
    return hints


def _block_count(keys: Mapping[str, Tensor]) -> int:
    numbers = {key.split(".")[1] for key in keys if key.startswith("blocks.")}
    return len(numbers)


def _listed(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    rest = len(items) - _SHOWN
    return f"{shown} and {rest} more ({len(items)} in all)" if rest > 0 else shown


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _without_ones(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)
