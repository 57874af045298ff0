"""Version and shape of the network: the checkpoint's where there is one, else what was given."""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import DataDiscovered, Discovered, StartDiscovered
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import DataConfig, ModelConfig, RunConfig
from rwkv_train.config.versions import DEFAULT_VERSION, VERSIONS
from rwkv_train.errors import ConfigError

# What a checkpoint's shapes tell; the other two fields leave no trace in it.
_FROM_SHAPES = tuple(
    entry.name
    for entry in dataclasses.fields(ModelConfig)
    if entry.name not in ("head_size_divisor", "dropout")
)


def resolve_model(config: RunConfig, discovered: Discovered, lines: list[str]) -> ResolvedModel:
    """Returns the model section with every size: the checkpoint's, what was given, the version's.

    Raises ConfigError for a flag that contradicts the checkpoint or the data.
    """
    start = discovered.start
    # First, as a head size would contradict the RWKV-4 checkpoint, which has none.
    model = _without_unused_head_size(config.model, start, lines)
    if start.donor_model is not None:
        model = _from_donor(model, start.donor_model, str(config.train.load_model), lines)
    if start.model is not None:
        model = _merged(model, start.model, str(start.path), lines)
    if model.rwkv_version is None:
        model = dataclasses.replace(model, rwkv_version=DEFAULT_VERSION)
        lines.append(f"rwkv_version {DEFAULT_VERSION}, since none is given")
    vocab_size = _vocabulary(model, config.data, discovered.data, start, lines)
    return complete_model(dataclasses.replace(model, vocab_size=vocab_size))


def _without_unused_head_size(
    model: ModelConfig, start: StartDiscovered, lines: list[str]
) -> ModelConfig:
    """Returns the model without the head size that RWKV-LM's scripts give to RWKV-4 as well."""
    found = start.model or start.donor_model
    version = model.rwkv_version or (found.rwkv_version if found else None) or DEFAULT_VERSION
    if VERSIONS[version].has("head_size") or model.head_size != 64:
        return model
    lines.append(f"head_size 64 is not used: RWKV-{version} has no heads")
    return dataclasses.replace(model, head_size=None)


def _merged(given: ModelConfig, found: ModelConfig, path: str, lines: list[str]) -> ModelConfig:
    """Returns what was given with what a checkpoint tells; raises ConfigError where they differ."""
    taken = {}
    for name in _FROM_SHAPES:
        asked, size = getattr(given, name), getattr(found, name)
        # A head_qk of 0 is also the default, which nobody has asked for.
        unasked = asked is None or (name == "head_qk" and asked == 0)
        if unasked:
            taken[name] = size
        elif asked != size:
            raise ConfigError(
                f"--{name} {asked} contradicts {path}, which has"
                f" {name} {'of its own none' if size is None else size}; leave the flag out"
            )
    shape = f"RWKV-{found.rwkv_version}, {found.n_layer} layers, width {found.n_embd}"
    lines.append(f"{shape}, vocabulary {found.vocab_size}: read from {path}")
    return dataclasses.replace(given, **taken)


def _from_donor(given: ModelConfig, donor: ModelConfig, path: str, lines: list[str]) -> ModelConfig:
    """Returns the sizes of a larger model: those not given are the donor's or the width's."""
    taken = {}
    for name in ("rwkv_version", "n_layer", "n_embd", "vocab_size", "head_size"):
        if getattr(given, name) is None:
            taken[name] = getattr(donor, name)
    # At another width the version's rules give better sizes than the donor's would be.
    if given.n_embd in (None, donor.n_embd):
        same_width = ("dim_att", "dim_ffn", *(n for n in _FROM_SHAPES if n.startswith("rank_")))
        taken |= {n: getattr(donor, n) for n in same_width if getattr(given, n) is None}
    # A head_qk of 0 is the default and does not ask to drop the donor's copy head.
    if donor.head_qk:
        taken["head_qk"] = given.head_qk or donor.head_qk
    model = dataclasses.replace(given, **taken)
    for name in ("rwkv_version", "head_size"):
        if getattr(model, name) != getattr(donor, name):
            raise ConfigError(
                f"--{name} {getattr(model, name)} differs from {path}, which has"
                f" {getattr(donor, name)}: a larger model is made of one of the same version and"
                " head size; leave the flag out"
            )
    if model.n_layer == donor.n_layer and model.n_embd == donor.n_embd:
        raise ConfigError(
            f"--load_model {path} at --train_stage 1 makes a larger model of a smaller one, and"
            f" --n_layer {model.n_layer} --n_embd {model.n_embd} are its own sizes; give larger"
            " ones, or train it as it is with --train_stage 0"
        )
    lines.append(
        f"RWKV-{model.rwkv_version}, {model.n_layer} layers, width {model.n_embd}: made of {path},"
        f" which has {donor.n_layer} layers, width {donor.n_embd}"
    )
    if model.vocab_size != donor.vocab_size:
        lines.append(
            f"vocab_size {model.vocab_size}, {path} has {donor.vocab_size}: tokens are matched by"
            " their id, and further ones get fresh initial values"
        )
    return model


def _vocabulary(
    model: ModelConfig,
    data: DataConfig,
    found: DataDiscovered | None,
    start: StartDiscovered,
    lines: list[str],
) -> int:
    """Returns the rows of embedding and head; raises ConfigError when the data needs more."""
    needed = None if found is None else found.vocab_size
    if model.vocab_size is None:
        if needed is None:
            manifest = f"{data.data_file}.manifest.json" if data.data_file else "a --data_file"
            raise ConfigError(
                f"--vocab_size is not given, and {manifest} that would tell it is not"
                " there; it is 65536 for RWKV's World tokenizer, 50304 for the Pile's"
            )
        return needed
    # More rows are padding (World: 65529 tokens, 65536 rows).  RWKV-LM never compares the two.
    if found is not None and needed is not None and model.vocab_size < needed:
        given = start.model is None
        source = "--vocab_size" if given else f"the model {start.path}"
        remedy = (
            f"use --vocab_size {needed}" if given else "make the data with the model's tokenizer"
        )
        raise ConfigError(
            f"{source} has {model.vocab_size} rows, but the data was written with a vocabulary of"
            f" {needed} ({found.tokenizer or data.data_type}); {remedy}"
        )
    return model.vocab_size
