"""The tokenizer of a folder for transformers: tokenizer.json, its settings, a chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rwkv_train.data.tokenize.tokenizer import (
    BytesTokenizer,
    JsonTokenizer,
    Tokenizer,
    VocabularyTokenizer,
    WorldTokenizer,
)
from rwkv_train.data.tokenize.tokenizer_files import TokenizerRecord, identity_of, write_record
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.world_definition import END_TOKEN, bytes_definition, world_definition

# What the data's template "world" writes (`data/chat/template.py`). Jinja has no expressions, but
# a pass halves every run of newlines: twelve clean runs of up to 4096.
CHAT_TEMPLATE = r"""
{%- set starts = {
  'system': 'System: ', 'developer': 'System: ', 'user': 'User: ', 'assistant': 'Assistant: ',
  'tool': 'User: Function output:\n', 'function': 'User: Function output:\n'
} -%}
{%- for message in messages -%}
{%- if message['role'] not in starts -%}
{{- raise_exception('the chat template of RWKV World has no role ' ~ message['role']) -}}
{%- endif -%}
{%- set at = namespace(text=message['content'] | replace('\r\n', '\n') | trim) -%}
{%- for pass in range(12) -%}{%- set at.text = at.text | replace('\n\n', '\n') -%}{%- endfor -%}
{%- if at.text or starts[message['role']] != 'System: ' -%}
{{- starts[message['role']] + at.text + '\n\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
""".strip()


def write_tokenizer(model: SourceModel, folder: Path) -> list[str]:
    """Writes the model's tokenizer into a folder; returns remarks for the user."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return [f"no tokenizer is in the folder: {model.no_tokenizer}"]
    definition = tokenizer_definition(tokenizer)
    if definition is not None:
        text = json.dumps(definition, ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        end = END_TOKEN
    elif isinstance(tokenizer, JsonTokenizer) and tokenizer.path is not None:
        shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
        found = tokenizer.token_of_end()
        if found is None:
            return [*_write_settings(folder, None), "the tokenizer has no token 0 to end a text"]
        end = found
    else:
        return [f"no tokenizer is in the folder: {tokenizer.name} has no form of tokenizer.json"]
    if tokenizer.path is None:
        # Read by this name again: ours is several times as fast as the library's.
        identity = identity_of(tokenizer.name, None)
        write_record(folder, TokenizerRecord(tokenizer.name, identity, tokenizer.vocab_size))
    return _write_settings(folder, end)


def tokenizer_definition(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """Returns the contents of a tokenizer.json that gives the same ids; None: none is made here."""
    if isinstance(tokenizer, BytesTokenizer):
        return bytes_definition()
    if isinstance(tokenizer, WorldTokenizer | VocabularyTokenizer):
        return world_definition(tokenizer.token_bytes())
    return None


def _write_settings(folder: Path, end: str | None) -> list[str]:
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end) if end else {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ends,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": 10**30,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
    return []
