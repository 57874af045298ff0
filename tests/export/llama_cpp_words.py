"""What llama.cpp makes of a file's vocabulary and template; a program of its own.

    python llama_cpp_words.py MODEL.gguf JOB.json RESULT.json

Job: texts to tokenize, messages to lay out by the C interface, or chat for the server.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

_CHILD = Path(__file__).parents[2] / "src/rwkv_train/export/targets/llama_cpp_child.py"


class Message(ctypes.Structure):
    _fields_ = (("role", ctypes.c_char_p), ("content", ctypes.c_char_p))


def load(path: Path):
    """The model as the package's own child process loads it, without the package."""
    spec = importlib.util.spec_from_file_location("llama_cpp_child", _CHILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.LlamaModel(path)
    model.calls.llama_model_chat_template.restype = ctypes.c_char_p
    model.calls.llama_vocab_is_eog.restype = ctypes.c_bool
    return model


def piece(model, token: int) -> bytes:
    """The bytes of a token, special ones written out."""
    room = ctypes.create_string_buffer(1024)
    vocab = ctypes.c_void_p(model.vocab)
    count = model.calls.llama_token_to_piece(vocab, token, room, len(room), 0, True)
    return room.raw[:count]


def laid_out(model, messages: list[list[str]]) -> str:
    """A conversation by the file's template, up to where the answer begins."""
    template = model.calls.llama_model_chat_template(ctypes.c_void_p(model.model), None)
    rows = (Message * len(messages))(*(Message(r.encode(), c.encode()) for r, c in messages))
    room = ctypes.create_string_buffer(1 << 14)
    apply = model.calls.llama_chat_apply_template
    count = apply(template, rows, ctypes.c_size_t(len(rows)), True, room, len(room))
    return room.raw[:count].decode()


def answer_of_server(path: str, messages: list[list[str]]) -> dict:
    """The tokens of the prompt that the server makes of a conversation."""
    from xllamacpp import CommonParams, Server

    settings = CommonParams()
    settings.model.path = path
    settings.n_ctx = 512
    settings.warmup = False
    settings.cpuparams.n_threads = 1
    rows = [{"role": role, "content": text} for role, text in messages]
    asked = {"messages": rows, "max_tokens": 1, "temperature": 0}
    usage = Server(settings).handle_chat_completions(asked)["usage"]
    return {"prompt_tokens": usage["prompt_tokens"]}


def main(path: str, job: dict) -> dict:
    if "chat" in job:
        return answer_of_server(path, job["chat"])
    model = load(Path(path))
    tokens, vocab = range(model.vocab_size), ctypes.c_void_p(model.vocab)
    return {
        "ids": [model.encode(text) for text in job["texts"]],
        "pieces": [piece(model, token).hex() for token in tokens],
        "ends": [token for token in tokens if model.calls.llama_vocab_is_eog(vocab, token)],
        "laid_out": laid_out(model, job["messages"]) if "messages" in job else None,
    }


if __name__ == "__main__":
    result = main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
    Path(sys.argv[3]).write_text(json.dumps(result))
