"""Builds a model from a configuration or a checkpoint, by the version's module.

`config/versions.py` names the module of every version. A version module holds:

    NAME                            how messages call it
    TimeMix, ChannelMix             the two halves of a block
    PARAMETERS                      rows: key pattern, initial value, learning-rate group, decay
    RESIDUAL_DROPOUT                whether dropout also acts on the residual stream
    OPTIONAL_KEYS                   keys a checkpoint may lack
    recognises(keys)                whether checkpoint keys are this version's
    sizes_from_shapes(shapes)       the version's own fields of ModelConfig
    wkv_to_rwkv_package(*wkv)       the operator's state in the `rwkv` package's order
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import VERSIONS, version_row
from rwkv_train.errors import ConfigError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.sizes import Shapes, matrix

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
    """Returns the module of RWKV version `version`; raises ConfigError when there is none."""
    return importlib.import_module(f"rwkv_train.models.{version_row(version).module}")


def build_model(
    config: ResolvedModel,
    *,
    wkv_backend: str = "auto",
    grad_cp: bool = False,
    train_states: bool = False,
    chunk_len: int | None = None,
) -> RWKV:
    """Returns a model with all weights zero, fp32, on torch's current default device.

    config: every size, as `complete_model` fills them.  wkv_backend: as `--wkv_backend`.
    grad_cp: recompute every block in the backward pass.
    train_states: add att.time_state, the initial state of every layer, used when no state is given.
    chunk_len: tokens that the loss reads at a time; None: all.
    """
    return RWKV(
        version_module(config.rwkv_version),
        config,
        wkv_backend=wkv_backend,
        grad_cp=grad_cp,
        train_states=train_states,
        chunk_len=chunk_len,
    )


def config_from_shapes(shapes: Shapes) -> ModelConfig:
    """Returns version and sizes of the model whose checkpoint has tensors of these shapes.

    shapes: key -> shape, as `checkpoint.read_shapes` gives them, in any order. head_size_divisor
    and dropout leave no trace in a checkpoint and get their defaults. Raises ConfigError naming
    what is odd.
    """
    # First, so that the message names the part: such a file may look like a plain version.
    for key in shapes:
        for ending, what in _UNSUPPORTED.items():
            if key.endswith(ending):
                raise ConfigError(f"the checkpoint has {what} ({key}), which is not supported")
    n_layer = _block_count(shapes)
    # All are asked, so that a file in which two see theirs is refused and not guessed at.
    found = [name for name in VERSIONS if version_module(name).recognises(shapes)]
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
    """Returns the number of blocks; raises ConfigError unless they are numbered 0, 1, 2 …"""
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
