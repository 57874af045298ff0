"""The peers of `benchmarks.peers`, made from other projects' code in folders that the user names.

An adapter imports a project from its folder, makes the model of a shape and returns it with its
loss. Nothing of the projects is part of this one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peer_gpt import GPT
from rwkv_train.training.whole_step import Loss, TimedShape

HEAD_SIZE = 64
# Writes a peer's weights into an empty folder; returns what our loader takes.
Written = Callable[[Path], Path]


class AbsentPeerError(Exception):
    """A peer that cannot take part, with the reason."""


class Peer(NamedTuple):
    """A model beside ours.

    lookups: its parameters that are read and not multiplied. write: None where our models compute
    another function. dtype: the only type its kernels take, None for any.
    """

    name: str
    model: nn.Module
    loss: Loss
    lookups: tuple[str, ...]
    write: Written | None = None
    dtype: torch.dtype | None = None


def plain_gpt(shape: TimedShape) -> Peer:
    """Returns the GPT that all are measured against."""
    model = GPT(shape.layers, shape.width, shape.vocab, shape.ctx_len)
    lookups = ("embedding.weight", "positions.weight")
    return Peer("GPT", model, _loss_of_logits(model), lookups)


def nano_rwkv(folder: Path, shape: TimedShape, device: torch.device) -> Peer:
    """Returns BlinkDL/nanoRWKV, an RWKV-5 with one decay a head, from its model.py."""
    module = _module_at(folder / "model.py", "nano_rwkv_model")
    sizes = {
        "block_size": shape.ctx_len,
        "vocab_size": shape.vocab,
        "n_layer": shape.layers,
        "n_head": shape.width // HEAD_SIZE,
        "n_embd": shape.width,
    }
    model = module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=False))
    # The head's weight is the embedding's, which is multiplied.
    return Peer("nanoRWKV", model, lambda x, y: model(x, y)[1], ("transformer.wpe.weight",))


def transformers_rwkv(folder: Path, shape: TimedShape, device: torch.device) -> Peer:
    """Returns RWKV-4 of Hugging Face's transformers, installed into the folder."""
    with _on_path(folder):
        module = _imported("transformers")
        config = module.RwkvConfig(
            vocab_size=shape.vocab,
            context_length=shape.ctx_len,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            use_cache=False,
        )
        model = module.RwkvForCausalLM(config).train()
    loss = _loss_of_logits(lambda tokens: model(tokens).logits)
    name = "transformers RWKV-4"
    return Peer(name, model, loss, ("rwkv.embeddings.weight",), _saved_pretrained(model))


def fla_rwkv(folder: Path, shape: TimedShape, device: torch.device) -> Peer:
    """Returns RWKV-7 of flash-linear-attention, on a GPU."""
    if device.type != "cuda":
        raise AbsentPeerError("its kernels need a GPU")
    with _on_path(folder):
        module = _imported("fla.models")
        config = module.RWKV7Config(
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            head_dim=HEAD_SIZE,
            vocab_size=shape.vocab,
            use_cache=False,
        )
        model = module.RWKV7ForCausalLM(config).train()
    loss = _loss_of_logits(lambda tokens: model(tokens).logits)
    return Peer("fla RWKV-7", model, loss, ("model.embeddings.weight",), _saved_pretrained(model))


def rwkv_lm(folder: Path, shape: TimedShape, device: torch.device) -> Peer:
    """Returns RWKV-7 of BlinkDL/RWKV-LM (folder RWKV-v7/train_temp), on a GPU, in bf16."""
    if device.type != "cuda":
        raise AbsentPeerError("its kernels need a GPU")
    told = {
        "RWKV_JIT_ON": "1",
        "RWKV_HEAD_SIZE": str(HEAD_SIZE),
        "RWKV_MY_TESTING": "x070",
        "RWKV_FLOAT_MODE": "bf16",
    }
    # It reads them, and its kernels' sources from the folder it is in, while it is imported.
    with _on_path(folder), _within(folder, told):
        module = _imported("src.model")
    sizes = Namespace(
        n_layer=shape.layers,
        n_embd=shape.width,
        dim_att=shape.width,
        dim_ffn=4 * shape.width,
        vocab_size=shape.vocab,
        ctx_len=shape.ctx_len,
        grad_cp=0,
    )
    model = module.RWKV(sizes)

    def write(target: Path) -> Path:
        torch.save(model.state_dict(), target / "model.pth")
        return target / "model.pth"

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = model.training_step((tokens, targets.contiguous()), 0)
        return value

    return Peer("RWKV-LM RWKV-7", model, loss, ("emb.weight",), write, torch.bfloat16)


# flag -> adapter
ADAPTERS: dict[str, Callable[[Path, TimedShape, torch.device], Peer]] = {
    "nano_rwkv": nano_rwkv,
    "transformers": transformers_rwkv,
    "fla": fla_rwkv,
    "rwkv_lm": rwkv_lm,
}


def _loss_of_logits(logits: Callable[[Tensor], Tensor]) -> Loss:
    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits(tokens).flatten(0, 1).float(), targets.flatten())

    return loss


def _saved_pretrained(model: Any) -> Written:
    def write(target: Path) -> Path:
        model.save_pretrained(target)
        return target

    return write


def _module_at(file: Path, name: str) -> ModuleType:
    """Returns the module of a single file; raises AbsentPeerError."""
    if not file.is_file():
        raise AbsentPeerError(f"{file} does not exist")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise AbsentPeerError(f"{file} cannot be imported: {error}") from error
    return module


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise AbsentPeerError(f"{name} cannot be imported: {error}") from error


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Puts a folder behind what is installed: the project's packages win over a copy in it."""
    if not folder.is_dir():
        raise AbsentPeerError(f"{folder} is no folder")
    # Left there: much is imported when a model is made, and later.
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    yield


@contextlib.contextmanager
def _within(folder: Path, told: dict[str, str]) -> Iterator[None]:
    """Is in a folder and has these environment variables for as long as the context lasts."""
    place, before = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.update(told)
    try:
        yield
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)
