"""Logits and tokens of a GGUF file from llama.cpp (wheel xllamacpp), in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import CheckpointError
from rwkv_train.export.target import TargetLogits, Unavailable, imported
from rwkv_train.export.targets.llama_cpp_child import NO_LIBRARY

# At which tokenizers go wrong: blanks, quotes and escapes, control characters, joined emoji, marks
# without a letter, the spellings of tokens that are none.
_TEXTS = (
    "",
    "    def f(x):\r\n\treturn 'a' + \"b\\n\"\n\n\n",
    "\0\x01\x7f\x1b[0m \\x41 b'\\xff'",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd \u0301\u0301\u2028\ufeff",
    "\u4e16\u754c\u4e0a\u6700\u5927\u7684\u52a8\u7269\U0002f800 Größe ﬁ İ",
    "x[PAD300]y[PAD65530]z \\xff\\xfe[PAD65530] </s><|endoftext|>",
    "=" * 300 + " " * 300,
)
# Run by its path: it needs nothing of this package, which the other process may not find.
_CHILD = Path(__file__).with_name("llama_cpp_child.py")


def llama_cpp_logits(
    path: Path, prompts: list[list[int]], tokenizer: Tokenizer
) -> list[TargetLogits] | Unavailable:
    """Returns the logits of prompts of at most 512 tokens.

    Raises CheckpointError when llama.cpp refuses the file, or does not tokenize as `tokenizer`.
    """
    missing = imported("xllamacpp", "export")
    if missing is not None:
        return missing
    found = ask_llama_cpp(path, {"prompts": prompts, "texts": _TEXTS})
    if isinstance(found, Unavailable):
        return found
    for number, text in enumerate(_TEXTS):
        ids, ours = found[f"ids_{number}"].tolist(), tokenizer.encode(text)
        if ids != ours:
            raise CheckpointError(
                f"llama.cpp tokenizes {text!r:.40} of {path} as {ids[:8]}, tokenizer "
                f"{tokenizer.name} as {ours[:8]}"
            )
    library = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    return [
        TargetLogits(
            library,
            torch.from_numpy(found[f"at_once_{number}"]),
            torch.from_numpy(found[f"one_by_one_{number}"]),
        )
        for number in range(len(prompts))
    ]


def ask_llama_cpp(path: Path, job: dict[str, Any]) -> dict[str, npt.NDArray[Any]] | Unavailable:
    """Returns what llama.cpp gives for a job; see `llama_cpp_child` for both.

    Raises CheckpointError with llama.cpp's words when it does not take the file.
    """
    # Not beside the model, whose folder is the export's.
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "result.npz")
        asked.write_text(json.dumps(job), encoding="utf-8")
        words = [sys.executable, str(_CHILD), str(path), str(asked), str(answer)]
        ran = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if ran.returncode == NO_LIBRARY:
            return Unavailable(ran.stderr.strip())
        if ran.returncode != 0:
            said = " ".join(ran.stderr.split()) or f"it ended with status {ran.returncode}"
            raise CheckpointError(f"llama.cpp does not take {path}: {said[-400:]}")
        with np.load(answer) as arrays:
            return {name: arrays[name] for name in arrays.files}
