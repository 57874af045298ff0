"""Computes with llama.cpp through its C interface; a program of its own.

    python llama_cpp_child.py MODEL.gguf JOB.json RESULT.npz

The wheel xllamacpp holds the library. A file that llama.cpp does not like may end the process, so
it must not be ours. Job: prompts (lists of ids), texts (strings to tokenize). Result, by the number
of the prompt or text: at_once_N and one_by_one_N, fp32 [T, V]; ids_N.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# More than either structure of settings has. They are only passed on, and a callee reads no more
# of an argument on the stack than it knows.
_SETTINGS_BYTES = 1024
_THREADS = 1
# The exit status that is not the file's fault.
NO_LIBRARY = 3


class _Settings(ctypes.Structure):
    _fields_ = (("content", ctypes.c_char * _SETTINGS_BYTES),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p
# Function -> what it returns, what it takes.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_Log, _POINTER)),
    "llama_model_default_params": (_Settings, ()),
    "llama_model_load_from_file": (_POINTER, (_TEXT, _Settings)),
    "llama_context_default_params": (_Settings, ()),
    "llama_init_from_model": (_POINTER, (_POINTER, _Settings)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_POINTER, _INT)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_tokenize": (
        _INT,
        (_POINTER, _TEXT, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool),
    ),
}


def library_path() -> Path | None:
    """Returns the file of xllamacpp that exports llama.cpp's functions, None when not installed."""
    found = importlib.util.find_spec("xllamacpp")
    for folder in (found and found.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("xllamacpp*")):
            if path.suffix in (".so", ".pyd", ".dylib"):
                return path
    return None


def _library() -> ctypes.CDLL:
    """Returns llama.cpp with its functions described; OSError where this wheel exports none."""
    path = library_path()
    if path is None:
        raise OSError("the package xllamacpp is not installed")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise OSError(f"xllamacpp exports no {name} on this machine")
        function.restype, function.argtypes = result, arguments
    return library


class LlamaModel:
    """A GGUF file that llama.cpp has loaded; raises ValueError with its words where it refuses.

    calls: the library.  model, vocab, context: its own pointers.
    """

    def __init__(self, path: Path) -> None:
        self.calls = _library()
        self._said: list[str] = []
        # Kept, for the library calls it as long as it lives.
        self._log = _Log(lambda level, text, _: self._said.append(text.decode(errors="replace")))
        self.calls.llama_log_set(self._log, None)
        self.calls.llama_backend_init()
        settings = self.calls.llama_model_default_params()
        self.model = self.calls.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise ValueError(self._last_words())
        self.vocab = self.calls.llama_model_get_vocab(self.model)
        self.vocab_size = int(self.calls.llama_vocab_n_tokens(self.vocab))
        # 512 positions by default, more than any prompt of a check.
        context_settings = self.calls.llama_context_default_params()
        self.context = self.calls.llama_init_from_model(self.model, context_settings)
        if not self.context:
            raise ValueError(self._last_words())
        self.calls.llama_set_n_threads(self.context, _THREADS, _THREADS)

    def logits(self, tokens: list[int], *, at_a_time: int) -> npt.NDArray[np.float32]:
        """Returns [T, V], from an empty state, `at_a_time` tokens in a call."""
        self.calls.llama_memory_clear(self.calls.llama_get_memory(self.context), True)
        rows = []
        for start in range(0, len(tokens), at_a_time):
            rows += self._decode(tokens[start : start + at_a_time], start)
        return np.stack(rows)

    def _decode(self, tokens: list[int], start: int) -> list[npt.NDArray[np.float32]]:
        with self._batch(tokens, start) as batch:
            status = self.calls.llama_decode(self.context, batch)
            if status != 0:
                raise ValueError(f"llama_decode gave {status}: {self._last_words()}")
            rows = [self.calls.llama_get_logits_ith(self.context, i) for i in range(len(tokens))]
            # Copies: the library's own memory is written again by the next call.
            return [np.ctypeslib.as_array(row, (self.vocab_size,)).copy() for row in rows]

    @contextmanager
    def _batch(self, tokens: list[int], start: int) -> Iterator[_Batch]:
        batch = self.calls.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = 1
        try:
            yield batch
        finally:
            self.calls.llama_batch_free(batch)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text as llama.cpp tokenizes it, with no token added."""
        content = text.encode()
        room = (ctypes.c_int32 * (len(content) + 1))()
        count = self.calls.llama_tokenize(
            self.vocab, content, len(content), room, len(room), False, False
        )
        if count < 0:
            raise ValueError(f"llama_tokenize gave {count} for {text[:40]!r}")
        return list(room[:count])

    def _last_words(self) -> str:
        return " ".join("".join(self._said).splitlines()[-3:]) or "llama.cpp gave no reason"


def _run(model: LlamaModel, job: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    result: dict[str, npt.NDArray[Any]] = {}
    for number, tokens in enumerate(job.get("prompts", ())):
        result[f"at_once_{number}"] = model.logits(tokens, at_a_time=len(tokens))
        result[f"one_by_one_{number}"] = model.logits(tokens, at_a_time=1)
    for number, text in enumerate(job.get("texts", ())):
        result[f"ids_{number}"] = np.array(model.encode(text), np.int64)
    return result


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, 1 with llama.cpp's words on stderr, or 3 without a library."""
    model_path, job_path, result_path = map(Path, argv)
    try:
        model = LlamaModel(model_path)
        result = _run(model, json.loads(job_path.read_text(encoding="utf-8")))
    except OSError as error:
        print(error, file=sys.stderr)
        return NO_LIBRARY
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    # The stubs take a keyword of any name for the function's own option.
    np.savez(result_path, **result)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
