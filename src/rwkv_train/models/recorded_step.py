"""One token for each of a few sequences, on a CPU: a native step, or parts as recorded operators.

The native step serves models that are no more than their version's formula. Both give the numbers
of `RWKV.features` and the head, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rwkv_train.models.backbone import RWKV
from rwkv_train.models.huge_pages import move_to_huge_pages
from rwkv_train.models.native_step import NativeStep
from rwkv_train.models.recorded_operators import RecordedOperators
from rwkv_train.models.residual import Residual
from rwkv_train.models.state import LayerState, ModelState
from rwkv_train.ops.matvec import MOST_VECTORS

_Flat: TypeAlias = Sequence[Tensor | None]
# A part's forward pass on its arguments in a row, given what calls its module with a tuple of them.
_Pass: TypeAlias = Callable[[Callable[..., Any], _Flat], _Flat]


class RecordedStep:
    """A model whose weights stay as they are; recorded at the first call of each batch size.

    Blocks of one shape share a recording.
    """

    def __init__(self, model: RWKV) -> None:
        self._model = model
        self._parts: dict[tuple[str, int], Callable[[Sequence[Tensor]], _Flat]] = {}
        self._recordings: dict[Any, RecordedOperators] = {}
        self._native: NativeStep | None = NativeStep(model)
        self._moved = False
        # Weights in training change, and what follows from them was computed once.
        self._fixed = not any(p.requires_grad for p in model.parameters())

    def serves(self, batch: int) -> bool:
        """Tells whether one token for each of `batch` sequences may be read here."""
        on_cpu = self._model.emb.weight.device.type == "cpu"
        return self._fixed and on_cpu and batch <= MOST_VECTORS

    def features(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Returns the head's input [B, 1, C] and the state after it; tokens: [B, 1]."""
        # Autograd's share of a call is larger than a small operator, also where it does nothing.
        with torch.inference_mode():
            self._prepare()
            if self._native is not None and self._native.serves(len(tokens)):
                return self._native.features(tokens, state)
            flat: _Flat = (self._model.embedded(tokens), None, None, None)
            after = []
            for layer, before in enumerate(state):
                many = isinstance(before.wkv, tuple)
                wkv = before.wkv if isinstance(before.wkv, tuple) else (before.wkv,)
                given = (*flat[:4], before.att_shift, *wkv, before.ffn_shift)
                block = self._model.blocks[layer]
                flat = self._call(f"block {layer}", block, _block_pass, given)
                # A block returns all tensors of a state.
                att_shift, *states, ffn_shift = flat[4:]
                wkv_after = tuple(states) if many else states[0]
                after.append(LayerState(att_shift, wkv_after, ffn_shift))  # type: ignore[arg-type]
            (x,) = self._call("norm", self._model.ln_out, _norm_pass, flat[:3])
        assert x is not None, "a norm has a result"
        return x, tuple(after)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits [B, V] of features [B, C]."""
        self._prepare()
        with torch.no_grad():
            (found,) = self._call("head", self._model.head, _head_pass, (features,))
        assert found is not None, "a head has a result"
        return found

    def _prepare(self) -> None:
        """Moves the weights, before anything here has hold of them."""
        if not self._moved:
            self._moved = True
            # Tensors that are made in inference mode stay in it.
            with torch.inference_mode(False), torch.no_grad():
                move_to_huge_pages(self._model)

    def _call(self, name: str, module: nn.Module, run_pass: _Pass, flat: _Flat) -> _Flat:
        key = name, flat[0].shape[0]  # type: ignore[union-attr]  # the first one is never missing
        given = [tensor for tensor in flat if tensor is not None]
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = self._recorded(module, run_pass, flat, given)
        return part(given)

    def _recorded(
        self, module: nn.Module, run_pass: _Pass, flat: _Flat, given: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], _Flat]:
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        missing = tuple(tensor is None for tensor in flat)
        key = _kind(module), missing, tuple(tensor.shape for tensor in given)

        def function(parameters: Sequence[Tensor], arguments: Sequence[Tensor]) -> _Flat:
            forward = partial(torch.func.functional_call, module, dict(zip(tensors, parameters)))
            rest = iter(arguments)
            return run_pass(forward, [None if absent else next(rest) for absent in missing])

        # Outside of inference mode, whose tensors a recording cannot follow.
        with torch.inference_mode(False):
            if key not in self._recordings:
                usual = [tensor.clone() for tensor in given]
                self._recordings[key] = RecordedOperators(function, list(tensors.values()), usual)
            return self._recordings[key].bound_to(list(tensors.values()))


def _block_pass(forward: Callable[..., Any], flat: _Flat) -> _Flat:
    x, out, gate, carry, att_shift, *wkv, ffn_shift = flat
    state = LayerState(att_shift, tuple(wkv) if len(wkv) > 1 else wkv[0], ffn_shift)  # type: ignore[arg-type]
    residual, carry, after = forward((Residual(x, out, gate), carry, state, None, True))  # type: ignore[arg-type]
    states = after.wkv if isinstance(after.wkv, tuple) else (after.wkv,)
    return [*residual, carry, after.att_shift, *states, after.ffn_shift]


def _norm_pass(forward: Callable[..., Any], flat: _Flat) -> _Flat:
    return [forward((Residual(*flat),)).mixed[0]]  # type: ignore[arg-type]


def _head_pass(forward: Callable[..., Any], flat: _Flat) -> _Flat:
    return [forward((flat[0],))]


def _kind(module: nn.Module) -> tuple[object, ...]:
    """Returns what else a recording depends on: classes, plain settings, shapes and dtypes."""
    plain = (bool, int, float, str, type(None))
    settings = [
        (name, type(part), [item for item in vars(part).items() if isinstance(item[1], plain)])
        for name, part in module.named_modules()
    ]
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return str(settings), tuple((name, tuple(t.shape), t.dtype) for name, t in tensors)
