"""Sizes of a model by the rules of its version."""

from __future__ import annotations

import math

from rwkv_train.config.check.field_limits import (
    check_limits,
    check_version,
    check_width,
    near_multiples,
)
from rwkv_train.config.resolved import SPECIFIC_SIZES, ResolvedModel, not_narrowed
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import DEFAULT_VERSION, VERSIONS, WIDTH_UNIT
from rwkv_train.errors import ConfigError

_DEFAULT_LAYERS, _DEFAULT_WIDTH = 6, 512
_USUAL_HEAD_SIZE = 64


def complete_model(given: ModelConfig) -> ResolvedModel:
    """Returns `given` with every size filled: as given, else by the rule of its version.

    Raises ConfigError for impossible or contradicting sizes and when vocab_size is unknown.
    """
    # `check_fields` does not precede every call: generation has only the sizes in a file.
    check_width(given)
    check_limits(given)
    check_version(given)
    version = DEFAULT_VERSION if given.rwkv_version is None else given.rwkv_version
    n_embd = _DEFAULT_WIDTH if given.n_embd is None else given.n_embd
    if given.vocab_size is None:
        raise ConfigError(
            "--vocab_size is not known: give it, or data whose manifest names a tokenizer"
        )
    rules = VERSIONS[version].sizes

    def size(name: str) -> int:
        if name not in rules:
            return 0
        asked: int | None = getattr(given, name)
        return rules[name](n_embd) if asked is None else asked

    model = ResolvedModel(
        rwkv_version=version,
        n_layer=_DEFAULT_LAYERS if given.n_layer is None else given.n_layer,
        n_embd=n_embd,
        dim_att=n_embd if given.dim_att is None else given.dim_att,
        dim_ffn=size("dim_ffn"),
        vocab_size=given.vocab_size,
        **{name: size(name) for name in SPECIFIC_SIZES},
        **not_narrowed(given, ResolvedModel),
    )
    _check_widths(model)
    return model


def _check_widths(model: ResolvedModel) -> None:
    """Raises ConfigError for widths that do not go together."""
    # No checkpoint and no runtime of the other versions knows anything else.
    if model.dim_att != model.n_embd and not VERSIONS[model.rwkv_version].wide_time_mix:
        raise ConfigError(
            f"--dim_att {model.dim_att} differs from --n_embd {model.n_embd}; in RWKV-"
            f"{model.rwkv_version} the time mix is as wide as the model, leave --dim_att out"
        )
    if model.head_size and model.dim_att % model.head_size:
        name = "n_embd" if model.dim_att == model.n_embd else "dim_att"
        unit = math.lcm(WIDTH_UNIT, model.head_size)
        widths = " or ".join(map(str, near_multiples(model.dim_att, unit)))
        raise ConfigError(
            f"--{name} {model.dim_att} is not a multiple of --head_size {model.head_size};"
            f" use --{name} {widths}, or --head_size {math.gcd(model.dim_att, _USUAL_HEAD_SIZE)}"
        )
