"""RWKV-6 and 7 as folders for flash-linear-attention (fla), and RWKV-7 for rwkv7-hf as well.

The names are those of `checkpoint/fla_names.py`, which reads such folders too; sizes are in
config.json. Source: flash-linear-attention 0.6 and rwkv7-hf 0.9, configuration of models.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_train.checkpoint.fla_names import DIVISOR_KEY, scaled, to_fla, value_divisor
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import (
    ExportOptions,
    ExportTarget,
    TargetLogits,
    Unavailable,
    imported,
    logits_of_library,
)
from rwkv_train.export.targets.gguf_vocabulary import byte_strings
from rwkv_train.export.tokenizer_folder import write_tokenizer
from rwkv_train.models.registry import version_module

# llama.cpp's converter of such folders looks for World's vocabulary under this name.
_VOCABULARY = "rwkv_vocab_v20230424.txt"


class FlaFolder(ExportTarget):
    """RWKV6ForCausalLM and RWKV7ForCausalLM of flash-linear-attention."""

    name = "fla"
    reader = "flash-linear-attention"

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        config = model.config
        if config.rwkv_version not in ("6", "7"):
            return f"fla has no RWKV-{config.rwkv_version} by these names, only RWKV-6 and RWKV-7"
        if config.rwkv_version == "7" and config.n_layer == 1:
            return "of one layer fla leaves out the value residual, whose rank would be lost"
        return super().refuses(model, options)

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        path.mkdir()
        version, divisor = model.config.rwkv_version, _divisor(model)
        tensors = to_fla(model.weights, version, divisor)
        save_weights(path / "model.safetensors", tensors, options.dtype)
        _write_json(path / "config.json", fla_config(model, options))
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        _write_json(path / "generation_config.json", ends)
        remarks = write_tokenizer(model, path) + _write_vocabulary(model, path)
        if divisor != 1:
            exact = all(
                torch.equal(value, model.weights[key].to(options.dtype))
                for key, value in self.expected(model, options).items()
            )
            how = "exactly" if exact else "with a rounding of the last bit"
            remarks.append(
                f"att.value was divided by {divisor:.6g}, because of the norm of the heads in fla; "
                f"--load_model takes it back {how}"
            )
        return remarks

    def expected(self, model: SourceModel, options: ExportOptions) -> dict[str, Tensor]:
        version, divisor = model.config.rwkv_version, _divisor(model)
        kept = {
            key: value
            for key, value in model.weights.items()
            if key not in version_module(version).OPTIONAL_KEYS
        }
        stored = {k: v.to(options.dtype) for k, v in scaled(kept, version, 1 / divisor).items()}
        return scaled(stored, version, divisor)

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        loaded = _load_strictly(path)
        if model.config.rwkv_version == "7":
            return _rwkv7_hf_logits(path, prompts)
        reason = "fla computes on a GPU only, and no other library reads its RWKV-6"
        return Unavailable(f"{reason}; {loaded}")

    def usage(self, name: str, model: SourceModel) -> str:
        lines = [
            "```python",
            "import fla  # pip install flash-linear-attention; needs a GPU",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{name}").cuda()',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            "```",
        ]
        return "\n".join(lines)


class Rwkv7HfFolder(FlaFolder):
    """RWKV7ForCausalLM of rwkv7-hf: the same folder."""

    name = "rwkv7-hf"
    reader = "rwkv7-hf, flash-linear-attention"

    def usage(self, name: str, model: SourceModel) -> str:
        lines = [
            "```python",
            "from rwkv7_hf import RWKV7ForCausalLM  # pip install rwkv7-hf",
            "from transformers import AutoTokenizer",
            "",
            f'model = RWKV7ForCausalLM.from_pretrained("{name}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
            'prompt = tokenizer("User: Hello\\n\\nAssistant:", return_tensors="pt").input_ids',
            "print(tokenizer.decode(model.generate(prompt, max_new_tokens=100)[0]))",
            "```",
        ]
        return "\n".join(lines)

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        if model.config.rwkv_version != "7":
            return f"rwkv7-hf has RWKV-7 only, this is RWKV-{model.config.rwkv_version}"
        return super().refuses(model, options)


def fla_config(model: SourceModel, options: ExportOptions) -> dict[str, Any]:
    """Returns the contents of config.json; fla's own defaults fit no RWKV, so all is written."""
    config, version = model.config, model.config.rwkv_version
    shared = {
        "architectures": [f"RWKV{version}ForCausalLM"],
        "model_type": f"rwkv{version}",
        "attn_mode": "chunk",
        "attn": None,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_heads": config.n_embd // config.head_size,
        "intermediate_size": config.dim_ffn,
        "hidden_ratio": config.dim_ffn / config.n_embd,
        "hidden_act": "sqrelu",
        "max_position_embeddings": model.trained_length,
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "fuse_norm": True,
        "fuse_cross_entropy": True,
        "use_l2warp": False,
        "use_cache": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": str(options.dtype).removeprefix("torch."),
        DIVISOR_KEY: _divisor(model),
    }
    if version == "6":
        # gate_low_rank_dim is the rank of the decay, whatever its name says.
        ranks: dict[str, Any] = {
            "expand_k": 1.0,
            "expand_v": 1.0,
            "proj_low_rank_dim": config.rank_mix,
            "gate_low_rank_dim": config.rank_decay,
        }
    else:
        ranks = {
            "head_dim": config.head_size,
            "decay_low_rank_dim": config.rank_decay,
            "a_low_rank_dim": config.rank_iclr,
            "v_low_rank_dim": config.rank_value,
            "gate_low_rank_dim": config.rank_gate,
            "value_dim": [config.n_embd] * config.n_layer,
        }
    return shared | ranks


def _divisor(model: SourceModel) -> float:
    return value_divisor(model.config.rwkv_version, model.config.head_size)


def _write_vocabulary(model: SourceModel, folder: Path) -> list[str]:
    """Writes a vocabulary of byte strings in RWKV's own format."""
    tokens = None if model.tokenizer is None else byte_strings(model.tokenizer)
    if tokens is None:
        return []
    lines = [f"{number} {_literal(token)} {len(token)}" for number, token in enumerate(tokens)]
    lines = [line for line, token in zip(lines, tokens) if token]
    (folder / _VOCABULARY).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return []


def _literal(token: bytes) -> str:
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def _load_strictly(path: Path) -> str:
    """Returns, in words, what fla makes of the names and shapes, which it tells without a GPU.

    Raises CheckpointError when a tensor is missing, left over or of another shape.
    """
    if any(importlib.util.find_spec(name) is None for name in ("fla", "triton", "transformers")):
        return "it is not installed, so its names and shapes were not compared with the folder's"
    try:
        # Known to transformers by the import alone.
        import fla
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        return f"it cannot be imported ({short_reason(error)})"
    _, found = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(found[f"{kind}_keys"])
        if keys:
            raise CheckpointError(
                f"fla {fla.__version__} does not take {path}: {len(keys)} {kind}, first {keys[0]}"
            )
    return f"fla {fla.__version__} takes all tensors and no others"


def _rwkv7_hf_logits(path: Path, prompts: list[list[int]]) -> list[TargetLogits] | Unavailable:
    missing = imported("rwkv7_hf", "export")
    if missing is not None:
        return missing
    import rwkv7_hf
    import transformers
    from rwkv7_hf.modeling_rwkv7 import RWKV7ForCausalLM

    transformers.utils.logging.disable_progress_bar()
    # What it warns of is how rwkv7-hf is written.
    transformers.utils.logging.set_verbosity_error()
    # fp32 whatever the file's format: the reference has the file's numbers too.
    theirs = RWKV7ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    library = f"rwkv7-hf {rwkv7_hf.__version__}"
    return [
        TargetLogits(library, *logits_of_library(theirs, tokens, state="past_key_values"))
        for tokens in prompts
    ]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
