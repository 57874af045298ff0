"""RWKV language models: `model, tokenizer, state = rwkv_train.load_model("rwkv-final.pth")`.

What a script may use by this name alone is listed here and imported when it is asked for, so that
`import rwkv_train` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_train.inference.engine.engine import Engine as Engine
    from rwkv_train.inference.opening import open_model as load_model

__all__ = ["Engine", "load_model"]

_PLACES = {
    "Engine": ("rwkv_train.inference.engine.engine", "Engine"),
    "load_model": ("rwkv_train.inference.opening", "open_model"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
