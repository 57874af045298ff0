"""RWKV-4 as a folder for transformers: `AutoModelForCausalLM`, `generate`, `pipeline`.

Keys are `rwkv.` and the checkpoint's, with some parts written out (`checkpoint/hf_names.py` reads
them); no tensor is changed. Source: transformers 5.24, models/rwkv/modeling_rwkv.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import (
    ExportOptions,
    ExportTarget,
    TargetLogits,
    Unavailable,
    imported,
    logits_of_library,
)
from rwkv_train.export.tokenizer_folder import write_tokenizer

# A part of a checkpoint key -> transformers' word for it.
_PARTS = {
    "emb": "embeddings",
    "ln0": "pre_ln",
    "att": "attention",
    "ffn": "feed_forward",
    "time_mix_k": "time_mix_key",
    "time_mix_v": "time_mix_value",
    "time_mix_r": "time_mix_receptance",
}
# From this layer on, and every so many more, transformers halves what is added in fp16, whose
# largest number is 65504. In other formats that only costs accuracy, and it changes the weights of
# a loaded model in place: saved again, they are no longer these.
_RESCALE_EVERY = {"fp16": 6}


class TransformersFolder(ExportTarget):
    """RwkvForCausalLM of the transformers library."""

    name = "transformers"
    reader = "transformers RwkvForCausalLM"
    library = "transformers"

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        config = model.config
        if config.rwkv_version != "4":
            return f"transformers has RWKV-4 only, this is RWKV-{config.rwkv_version}"
        if config.dim_att != config.n_embd:
            return (
                f"transformers fails to generate where --dim_att ({config.dim_att}) is not "
                f"--n_embd ({config.n_embd})"
            )
        return super().refuses(model, options)

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        path.mkdir()
        tensors = {transformers_key(key): value for key, value in model.weights.items()}
        save_weights(path / "model.safetensors", tensors, options.dtype)
        _write_json(path / "config.json", folder_config(model, options))
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        _write_json(path / "generation_config.json", ends)
        remarks = write_tokenizer(model, path)
        remarks.append(
            "transformers decodes RWKV-4 wrongly in batches of several prompts; give it one at a "
            "time"
        )
        return remarks

    def usage(self, name: str, model: SourceModel) -> str:
        prompt = "User: Hello\\n\\nAssistant:"
        return "\n".join(
            (
                "```python",
                "from transformers import pipeline",
                "",
                f'generate = pipeline("text-generation", "{name}")',
                f'print(generate("{prompt}", max_new_tokens=100)[0]["generated_text"])',
                "```",
            )
        )

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        missing = imported("transformers", "export")
        if missing is not None:
            return missing
        import transformers

        transformers.utils.logging.disable_progress_bar()
        # fp32 whatever the file's format: the reference has the file's numbers too.
        theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        theirs.eval()
        library = f"transformers {transformers.__version__}"
        return [
            TargetLogits(library, *logits_of_library(theirs, tokens, state="state"))
            for tokens in prompts
        ]


def transformers_key(key: str) -> str:
    """Returns transformers' name of a checkpoint key of RWKV-4."""
    if key.startswith("head."):
        return key
    return "rwkv." + ".".join(_PARTS.get(part, part) for part in key.split("."))


def folder_config(model: SourceModel, options: ExportOptions) -> dict[str, Any]:
    """Returns the contents of config.json."""
    config = model.config
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "attention_hidden_size": config.dim_att,
        "intermediate_size": config.dim_ffn,
        "layer_norm_epsilon": 1e-5,
        "context_length": model.trained_length,
        "rescale_every": _RESCALE_EVERY.get(options.precision, 0),
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": str(options.dtype).removeprefix("torch."),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
