"""The WKV operators over the ranks that share a row.

The operator itself runs once, on the rank's own tokens, with the state that the pieces before leave
behind; on the way back its final state is given the gradient that the pieces behind ask for. What
is exact is in that one call, and both states are numbers that come from outside of its graph:
gradients through the transitions are those of the operator with its true states, and a second way
through the pieces would count them twice.

What ranks tell one another travels while something else is computed, so that it costs no time where
a piece has tokens enough. Forwards that is the receptance, which a piece does to the state without.
Backwards it is the gate: autograd takes what was made last first, so that in the order

    the operator, _Fetch, the gate, _Attach

_Attach sends the gradient of the entering state, the gate's products go backwards, and _Fetch waits
for what the operator's final state is asked for.

Source: the chain rule over the pieces of a recurrence; see docs/context_parallel.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.errors import ConfigError
from rwkv_train.models.piece_exchange import Crossing, cross, gradient_of
from rwkv_train.models.state import WkvState
from rwkv_train.models.token_ranks import Awaited, TokenRanks
from rwkv_train.ops.pieces import (
    wkv4_piece,
    wkv4_state_gradient,
    wkv5_piece,
    wkv5_state_gradient,
    wkv6_piece,
    wkv6_state_gradient,
    wkv7_piece,
    wkv7_state_gradient,
)
from rwkv_train.ops.wkv4 import wkv4
from rwkv_train.ops.wkv5 import wkv5
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.ops.wkv7 import wkv7_and_bonus

Operator = Callable[..., Any]


class _StateOnly(NamedTuple):
    """The forms of an operator that know its state alone, each by names of its arguments.

    piece(*own, **options); gradient(gy, *own, **options), with `entering` behind those of RWKV-4.
    """

    arguments: tuple[str, ...]
    piece: Callable[..., Any]
    piece_reads: tuple[str, ...]
    gradient: Callable[..., Any]
    gradient_reads: tuple[str, ...]
    reads_state: bool = False


_STATE_ONLY: Mapping[Operator, _StateOnly] = {
    wkv4: _StateOnly(
        ("w", "u", "k", "v", "state"),
        wkv4_piece,
        ("w", "k", "v"),
        wkv4_state_gradient,
        ("w", "u", "k", "v"),
        reads_state=True,
    ),
    wkv5: _StateOnly(
        ("r", "k", "v", "w", "u", "state"),
        wkv5_piece,
        ("k", "v", "w"),
        wkv5_state_gradient,
        ("r", "w"),
    ),
    wkv6: _StateOnly(
        ("r", "k", "v", "w", "u", "state"),
        wkv6_piece,
        ("k", "v", "w"),
        wkv6_state_gradient,
        ("r", "w"),
    ),
    wkv7_and_bonus: _StateOnly(
        ("r", "w", "k", "v", "a", "b", "bonus", "state"),
        wkv7_piece,
        ("w", "k", "v", "a", "b"),
        wkv7_state_gradient,
        ("r", "w", "a", "b"),
    ),
}


def spread(operator: Operator, ranks: TokenRanks | None, with_state: bool) -> Operator:
    """Returns a WKV operator for tokens that `ranks` share; None: for all of a row's.

    operator: `wkv4`, `wkv5`, `wkv6` or `wkv7_and_bonus`. The states are those before and after all
    pieces, equal on every rank; the one after only `with_state`. Collective, as its backward pass.

    What is returned takes and gives what the operator does, and two things more, which hide the
    exchange: an argument that the state does not depend on may be a function that makes it; and
    `gate` makes what y is going to be multiplied by, which comes back behind the other results.

    Raises ConfigError for another operator.
    """
    if ranks is None:
        return partial(_alone, operator)
    if operator not in _STATE_ONLY:
        name = getattr(operator, "__name__", operator)
        raise ConfigError(
            f"--context_parallel {ranks.size}: the operator {name} has no form that knows its state"
            " alone; leave --context_parallel out"
        )
    return partial(_over_ranks, operator, ranks, with_state)


def _alone(
    operator: Operator, *given: Any, gate: Callable[[], Tensor] | None = None, **options: Any
) -> tuple[Any, ...]:
    results = operator(*(_made(argument) for argument in given), **options)
    return results if gate is None else (*results, gate())


def _over_ranks(
    operator: Operator,
    ranks: TokenRanks,
    wants_row: bool,
    *positional: Any,
    backend: str,
    reset: Tensor | None = None,
    base: Tensor | None = None,
    gate: Callable[[], Tensor] | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    forms = _STATE_ONLY[operator]
    given = dict(zip(forms.arguments, positional, strict=True))
    # Those of RWKV-6 and 7 alone have a base.
    based = {} if base is None else {"base": base}
    start: WkvState | None = given.pop("state")

    def tell() -> Awaited[Crossing[Any]]:
        read = [given[name] for name in forms.piece_reads]
        own = forms.piece(*read, **based, backend=backend, reset=reset)
        return cross(ranks, own, _mapped(torch.Tensor.detach, start), wants_row)

    told = ranks.once(tell)
    given = {name: _made(argument) for name, argument in given.items()}
    crossing = told.result()
    entering = _entering(ranks, start, crossing.entering)
    # Its gradient is what the pieces behind ask for. RWKV-4's has it in any case.
    options.update({name: True for name in options if name == "with_state"})
    y, *more, final = operator(
        *given.values(), entering, **based, **options, backend=backend, reset=reset
    )
    local = _Local(forms, backend, ranks, crossing)
    y = _Fetch.apply(local, y, *_parts(final))  # type: ignore[no-untyped-call]  # torch's own
    gated = () if gate is None else (gate(),)
    saved = [reset, base, *(given[name] for name in forms.gradient_reads)]
    y, *row = _Attach.apply(  # type: ignore[no-untyped-call]  # torch's own
        local, y, *(None if x is None else x.detach() for x in saved)
    )
    return y, *more, _whole(row, final) if row else None, *gated


@dataclass
class _Local:
    """All that the backward pass of one call needs besides tensors.

    asked: the adjoint of the state after the piece, between `_Attach` and `_Fetch`.
    """

    forms: _StateOnly
    backend: str
    ranks: TokenRanks
    crossing: Crossing[Any]
    asked: Awaited[Any] | None = None

    def gradient(self, gy: Tensor, saved: tuple[Tensor | None, ...]) -> Any:
        """Returns the adjoint of the entering state through this rank's own outputs."""
        reset, base, *own = saved
        options = {} if base is None else {"base": base}
        state = (self.crossing.entering,) if self.forms.reads_state else ()
        return self.forms.gradient(gy, *own, *state, **options, backend=self.backend, reset=reset)


class _Fetch(torch.autograd.Function):
    """Passes y on; its backward waits for the gradient of the operator's final state.

    Directly behind the operator, which gets this gradient together with that of y.
    """

    @staticmethod
    def forward(ctx: Any, local: _Local, y: Tensor, *final: Tensor) -> Tensor:
        ctx.local = local
        ctx.save_for_backward(*final)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        local: _Local = ctx.local
        assert local.asked is not None, "the gradient of y has come through _Attach"
        found, local.asked = local.asked.result(), None
        return None, gy, *_parts(gradient_of(_state_of(ctx.saved_tensors), found))


class _Attach(torch.autograd.Function):
    """Passes y on; its backward asks for the gradient of the operator's final state.

    It sees the gradient of y that the operator is going to see, and autograd calls it first.
    """

    @staticmethod
    def forward(ctx: Any, local: _Local, y: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.local = local
        ctx.save_for_backward(*tensors)
        # In memory of their own: what is kept for a second pass has no graph.
        row = [] if local.crossing.row is None else _parts(local.crossing.row)
        return y, *(part.clone() for part in row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor, *grow: Tensor) -> tuple[Any, ...]:
        local: _Local = ctx.local
        # Once: activation checkpointing lets nobody unpack them twice.
        saved = ctx.saved_tensors
        own = local.gradient(gy, saved)
        of_row = _state_of(grow) if grow else None
        local.asked = local.crossing.way_back.gradient(local.ranks, own, of_row, local.crossing.row)
        return None, gy, *[None] * len(saved)


class _Entering(torch.autograd.Function):
    """The first rank's state is the row's, that of the others a constant, with one graph for all.

    A parameter that was used on one rank alone would leave data-parallel training waiting for its
    gradient on the others, and with frozen weights these would have no graph at all.
    """

    @staticmethod
    def forward(ctx: Any, is_first: bool, start: Tensor, entering: Tensor) -> Tensor:
        ctx.is_first = is_first
        return (start if is_first else entering).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient if ctx.is_first else torch.zeros_like(gradient), None


def _entering(ranks: TokenRanks, start: Any, entering: Any) -> Any:
    """Returns the state before this rank's piece, which `start` is in the graph of."""
    if start is None:
        return entering
    parts = [
        _Entering.apply(ranks.rank == 0, *pair)  # type: ignore[no-untyped-call]  # torch's own
        for pair in zip(_parts(start), _parts(entering), strict=True)
    ]
    return _whole(parts, start)


def _made(argument: Any) -> Any:
    """Returns an argument, or what it makes where it is a function."""
    return argument() if callable(argument) else argument


def _state_of(parts: tuple[Tensor, ...]) -> Any:
    """Returns the state of these parts: RWKV-4's is three tensors, that of the others one."""
    return parts[0] if len(parts) == 1 else parts


def _parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _whole(parts: Any, like: Any) -> Any:
    """Returns parts of a state in the form that `like` has."""
    return parts[0] if isinstance(like, Tensor) else tuple(parts)


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    return None if state is None else _whole([function(part) for part in _parts(state)], state)
