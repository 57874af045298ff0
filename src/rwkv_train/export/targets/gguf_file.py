"""RWKV-6 and 7 as GGUF, which llama.cpp, Ollama and programs around them read.

Source: llama.cpp's convert_hf_to_gguf.py for what the metadata is called, and its loader for what
it must hold; ranks are written from the shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rwkv_train.data.tokenize.tokenizer import WorldTokenizer
from rwkv_train.errors import CheckpointError, ConfigError, missing_package
from rwkv_train.export.model_source import SourceModel, complete_weights
from rwkv_train.export.target import (
    LARGEST_ERROR,
    ExportOptions,
    ExportTarget,
    TargetLogits,
    Unavailable,
)
from rwkv_train.export.targets.gguf_tensors import from_gguf, is_matrix, matrix_name, to_gguf
from rwkv_train.export.targets.gguf_vocabulary import byte_strings, gguf_tokens
from rwkv_train.export.targets.llama_cpp import llama_cpp_logits
from rwkv_train.export.tokenizer_folder import CHAT_TEMPLATE
from rwkv_train.models.registry import version_module

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter, ReaderTensor

# Precision -> gguf's name of the matrices' format, its number for a file that is mostly so, and
# what the products of llama.cpp, whose other factor is rounded to the same format, may differ by.
_FORMATS = {
    "fp32": ("F32", 0, LARGEST_ERROR),
    "bf16": ("BF16", 32, 1.5e-1),
    "fp16": ("F16", 1, 3e-2),
    "q8_0": ("Q8_0", 7, 1.5e-1),
}
_READ_AS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# llama.cpp's C interface knows templates by words in them, and has World's by this one; its server
# carries the whole out as Jinja, in which this is a remark.
_CHAT_TEMPLATE = "{#- rwkv-world -#}" + CHAT_TEMPLATE
# Ollama lays conversations out by a template in a language of its own, and not by the file's.
_MODELFILE = '''
TEMPLATE """{{- range .Messages }}
{{- if eq .Role "system" }}System: {{ else if eq .Role "user" }}User: {{ else }}Assistant: {{ end }}
{{- .Content }}

{{ end }}Assistant:"""
PARAMETER stop "\\n\\n"
PARAMETER stop "\\nUser:"
'''.strip()
# By convention: a state has no end.
_CONTEXT = 1048576
# "\n\n" in World: what ends a turn there.
_BLANK_LINE = 261


class GgufFile(ExportTarget):
    """One file with weights, sizes and vocabulary."""

    name = "gguf"
    reader = "llama.cpp, Ollama"
    suffix = ".gguf"
    library = "gguf"
    precisions = tuple(_FORMATS)

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        config = model.config
        if config.rwkv_version not in ("6", "7"):
            return f"llama.cpp has no RWKV-{config.rwkv_version}, only RWKV-6 and RWKV-7"
        if model.tokenizer is None:
            return f"a GGUF file holds its vocabulary, and {model.no_tokenizer}"
        if byte_strings(model.tokenizer) is None:
            return (
                "llama.cpp's RWKV has a vocabulary of byte strings, such as World or bytes; its "
                f"tokenizer {model.tokenizer.name} is none"
            )
        return _refuses_end(model, options.gguf_eot) or super().refuses(model, options)

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise ConfigError(missing_package("--to gguf", "gguf", "export")) from error

        version = model.config.rwkv_version
        writer = gguf.GGUFWriter(path, f"rwkv{version}")
        _add_metadata(writer, model, options)
        _add_vocabulary(writer, model, options)
        formats = _matrix_formats(model, options)
        by_name = {matrix_name(key, version): kind for key, kind in formats.items()}
        for name, value in to_gguf(model.weights, version).items():
            array, kind = value.float().numpy(), gguf.GGMLQuantizationType[by_name.get(name, "F32")]
            # add_tensor takes F32 from the array's own type only.
            if name in by_name:
                writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        end = end_of_turn(model, options)
        if end is None:
            return []
        return [
            f"llama.cpp ends its answer at token {end}, a blank line in World, as in all published "
            f"files: right for chat, wrong for stories and code; --gguf_eot none leaves that out"
        ]

    def read_back(self, path: Path) -> dict[str, Tensor]:
        import gguf

        reader = gguf.GGUFReader(path)
        version = _field(reader, path, "general.architecture").removeprefix("rwkv")
        head_size = int(_field(reader, path, f"rwkv{version}.wkv.head_size"))
        tensors = {tensor.name: _read_tensor(tensor) for tensor in reader.tensors}
        return complete_weights(path, from_gguf(tensors, version, head_size))[0]

    def expected(self, model: SourceModel, options: ExportOptions) -> dict[str, Tensor]:
        formats = _matrix_formats(model, options)
        # Of layer 0's v0, v1, v2, which nothing reads, llama.cpp wants another shape.
        kept = {
            key: value
            for key, value in model.weights.items()
            if key not in version_module(model.config.rwkv_version).OPTIONAL_KEYS
        }
        return {key: _stored(value, formats.get(key, "F32")) for key, value in kept.items()}

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        assert model.tokenizer is not None, "refused before"
        return llama_cpp_logits(path, prompts, model.tokenizer)

    def usage(self, name: str, model: SourceModel) -> str:
        return (
            f"```sh\nllama-server -m {name}\n```\n\n"
            "Ollama: `ollama create my-rwkv -f Modelfile && ollama run my-rwkv`, with this as its "
            f"Modelfile:\n\n```\nFROM ./{name}\n{_MODELFILE}\n```"
        )

    def largest_error(self, model: SourceModel, options: ExportOptions) -> float:
        return _FORMATS[options.precision][2]


def _matrix_formats(model: SourceModel, options: ExportOptions) -> dict[str, str]:
    """Returns checkpoint key -> gguf's name of the format, for matrices; all others are F32."""
    kind = _FORMATS[options.precision][0]
    # Q8_0 gives every 32 numbers of a row a scale; all widths of RWKV are multiples of that.
    return {key: kind for key, value in model.weights.items() if is_matrix(key, value)}


def _stored(value: Tensor, kind: str) -> Tensor:
    """Returns what a tensor that was stored in this format is read as."""
    if kind in _READ_AS:
        return value.float().to(_READ_AS[kind])
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    array = gguf.quantize(value.float().numpy(), number)
    return torch.from_numpy(gguf.dequantize(array, number).reshape(value.shape))


def _read_tensor(tensor: ReaderTensor) -> Tensor:
    import gguf

    # The reader maps the file: a copy outlives it.
    array = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return torch.from_numpy(array.reshape(shape)).to(
        _READ_AS.get(tensor.tensor_type.name, torch.float32)
    )


def _field(reader: GGUFReader, path: Path, name: str) -> Any:
    found = reader.get_field(name)
    if found is None:
        raise CheckpointError(f"{path} lacks {name}")
    return found.contents()


def _add_metadata(writer: GGUFWriter, model: SourceModel, options: ExportOptions) -> None:
    import gguf

    config, number = model.config, _FORMATS[options.precision][1]
    writer.add_name(model.path.resolve().stem)
    writer.add_file_type(number)
    if options.precision == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.dim_ffn)
    writer.add_layer_norm_eps(1e-5)
    # Required, and of no meaning here.
    writer.add_head_count(0)
    writer.add_wkv_head_size(config.head_size)
    for name, value in _ranks(model).items():
        writer.add_uint32(f"rwkv{config.rwkv_version}.{name}", value)


def _ranks(model: SourceModel) -> dict[str, int]:
    """Returns the sizes that only one version has: ranks, and RWKV-6's rescaling (off)."""
    config = model.config
    if config.rwkv_version == "6":
        return {
            "rescale_every_n_layers": 0,
            "time_mix_extra_dim": config.rank_mix,
            "time_decay_extra_dim": config.rank_decay,
        }
    return {
        "attention.decay_lora_rank": config.rank_decay,
        "attention.iclr_lora_rank": config.rank_iclr,
        "attention.value_residual_mix_lora_rank": config.rank_value,
        "attention.gate_lora_rank": config.rank_gate,
    }


def _add_vocabulary(writer: GGUFWriter, model: SourceModel, options: ExportOptions) -> None:
    assert model.tokenizer is not None, "refused before"
    tokens = byte_strings(model.tokenizer)
    assert tokens is not None, "refused before"
    spellings, kinds = gguf_tokens(tokens, model.config.vocab_size)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(spellings)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    end = end_of_turn(model, options)
    if end is not None:
        writer.add_eot_token_id(end)
    writer.add_chat_template(_CHAT_TEMPLATE)


def end_of_turn(model: SourceModel, options: ExportOptions) -> int | None:
    """Returns the id at which llama.cpp also ends a generation, None where there is none."""
    if options.gguf_eot is not None:
        return None if options.gguf_eot == "none" else int(options.gguf_eot)
    is_world = isinstance(model.tokenizer, WorldTokenizer)
    return _BLANK_LINE if is_world and model.config.vocab_size > _BLANK_LINE else None


def _refuses_end(model: SourceModel, given: str | None) -> str | None:
    if given in (None, "none"):
        return None
    rows = model.config.vocab_size
    if given.isascii() and given.isdecimal() and int(given) < rows:
        return None
    return f"--gguf_eot {given} is neither none nor a token below {rows}"
