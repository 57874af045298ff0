"""The RWKV versions, one line each, and how a model comes from a configuration or a checkpoint.

A version module holds:

    NAME                            how messages call it
    TimeMix, ChannelMix             the two halves of a block
    PARAMETERS                      rows: key pattern, initial value, learning-rate group, decay
    RESIDUAL_DROPOUT                whether dropout also acts on the residual stream
    OPTIONAL_KEYS                   keys a checkpoint may lack
    complete(config)                fills the sizes by the version's rules
    recognises(keys)                whether checkpoint keys are this version's
    sizes_from_shapes(shapes)       the version's own fields of ModelConfig
    wkv_to_rwkv_package(*wkv)       the operator's state in the `rwkv` package's order
"""

from __future__ import annotations

import re
from types import ModuleType

from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError
from rwkv_train.models import rwkv4, rwkv5, rwkv6, rwkv7
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.sizes import Shapes, check_sizes, matrix, with_defaults

VERSIONS: dict[str, ModuleType] = {"4": rwkv4, "5": rwkv5, "6": rwkv6, "7": rwkv7}
DEFAULT_VERSION = "7"

# Ends of keys that only models we do not build have.
_UNSUPPORTED = {
    ".ffn.aa.weight": "the MishGLU channel mix",
    ".ffnPre.key.weight": "a channel mix in place of the first time mix (pre_ffn)",
    ".tiny_q.weight": "tiny attention (tiny_att_dim)",
    ".pos_emb_x": "a position table (my_pos_emb)",
    ".ffn.s_emb.weight": "per-token embeddings in the channel mix (DeepEmbed)",
}
_BLOCK = re.compile(r"blocks\.([0-9]+)\.")


def version_module(version: str) -> ModuleType:
    """The module of RWKV version `version`; ConfigError when there is none."""
    if version not in VERSIONS:
        raise ConfigError(f"RWKV version {version!r} is unknown, expected {', '.join(VERSIONS)}")
    return VERSIONS[version]


def build_model(
    config: ModelConfig,
    *,
    wkv_backend: str = "auto",
    grad_cp: bool = False,
    train_states: bool = False,
    chunk_len: int | None = None,
) -> RWKV:
    """A model with all weights zero, fp32, on torch's current default device.

    config: complete (see `complete`).  wkv_backend: as `--wkv_backend`.
    grad_cp: recompute every block in the backward pass.
    train_states: add att.time_state, the initial state of every layer, used when no state is given.
    chunk_len: tokens that the loss reads at a time; None: all.
    """
    assert config == complete(config), "build_model needs a complete configuration"
    module = version_module(config.rwkv_version)
    return RWKV(
        module,
        config,
        wkv_backend=wkv_backend,
        grad_cp=grad_cp,
        train_states=train_states,
        chunk_len=chunk_len,
    )


def complete(config: ModelConfig) -> ModelConfig:
    """`config` with every size the version needs; fields it has no use for stay None.

    Raises ConfigError for impossible or contradicting sizes and when vocab_size is unknown.
    """
    config = with_defaults(config, rwkv_version=DEFAULT_VERSION, n_layer=6, n_embd=512)
    module = version_module(config.rwkv_version)
    config = with_defaults(config, dim_att=config.n_embd)
    if config.vocab_size is None:
        raise ConfigError(
            "--vocab_size is not known: give it, or data whose manifest names a tokenizer"
        )
    config = module.complete(config)
    check_sizes(config)
    return config


def config_from_shapes(shapes: Shapes) -> ModelConfig:
    """Version and sizes of the model whose checkpoint has tensors of these shapes.

    shapes: key -> shape, as `checkpoint.read_shapes` gives them, in any order. head_size_divisor
    and dropout leave no trace in a checkpoint and get their defaults. Raises ConfigError naming
    what is odd.
    """
    for key in shapes:
        for ending, what in _UNSUPPORTED.items():
            if key.endswith(ending):
                raise ConfigError(f"the checkpoint has {what} ({key}), which is not supported")
    n_layer = _block_count(shapes)
    found = [name for name, module in VERSIONS.items() if module.recognises(shapes)]
    if len(found) != 1:
        raise ConfigError(
            f"the checkpoint's version cannot be told: its first block looks like "
            f"{' and '.join('RWKV-' + name for name in found) or 'no known version'}; expected "
            f"RWKV-{', '.join(VERSIONS)}"
        )
    vocab_size, n_embd = matrix(shapes, "emb.weight")
    return ModelConfig(
        rwkv_version=found[0],
        n_layer=n_layer,
        n_embd=n_embd,
        dim_att=matrix(shapes, "blocks.0.att.key.weight")[0],
        dim_ffn=matrix(shapes, "blocks.0.ffn.key.weight")[0],
        vocab_size=vocab_size,
        head_qk=matrix(shapes, "head_q.weight")[0] if "head_q.weight" in shapes else 0,
        **version_module(found[0]).sizes_from_shapes(shapes),
    )


def _block_count(shapes: Shapes) -> int:
    """Number of blocks; ConfigError unless they are numbered 0, 1, 2 …"""
    numbers = {int(match.group(1)) for match in map(_BLOCK.match, shapes) if match}
    if not numbers:
        raise ConfigError("the checkpoint has no tensor blocks.N.…, so it is no RWKV model")
    gaps = sorted(set(range(max(numbers) + 1)) - numbers)
    if gaps:
        raise ConfigError(
            f"the checkpoint lacks block{'s' * (len(gaps) > 1)} "
            f"{', '.join(map(str, gaps[:5]))} of {max(numbers) + 1}; it is not complete"
        )
    return len(numbers)
