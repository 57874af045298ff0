"""Counts how long a step waits for other ranks, on a CPU, where a collective call is the host's.

On a card the host only launches them and goes on; to see their end it would have to wait itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd import Variable

from rwkv_train.training.run_clock import RunClock

# DeepSpeed's collective calls of a step, methods of its backend.
_COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter_tensor", "broadcast"),
    *("all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single"),
)


def count_wait_behind_backward(loss: Tensor, clock: RunClock) -> None:
    """Counts for communication from the last own gradient on, in the backward pass of `loss`.

    Only then does DDP wait for the sums that ran beside it. Whoever runs the pass ends the wait,
    with `RunClock.switch`.
    """

    def begin() -> None:
        clock.wait_for_ranks()

    def queue(gradient: Tensor) -> None:
        # Called in the order of queueing, and DDP queues its own with its last bucket.
        Variable._execution_engine.queue_callback(begin)

    # torch declares no types of it.
    loss.register_hook(queue)  # type: ignore[no-untyped-call]


def count_collectives(clock: RunClock) -> Callable[[], None]:
    """Counts DeepSpeed's collective calls from here on; returns what ends that."""
    from deepspeed import comm

    backend = comm.comm.cdb
    names = [name for name in _COLLECTIVES if hasattr(backend, name)]
    for name in names:
        setattr(backend, name, partial(_counted, getattr(backend, name), clock))

    def end() -> None:
        for name in names:
            # The class's own method lies below.
            delattr(backend, name)

    return end


def _counted(call: Callable[..., Any], clock: RunClock, *arguments: Any, **options: Any) -> Any:
    with clock.waiting_for_ranks():
        handle = call(*arguments, **options)
    # With async_op it waits later.
    return handle if handle is None else _CountedHandle(handle, clock)


class _CountedHandle:
    """A handle whose `wait` is counted; all else is the handle's."""

    def __init__(self, handle: Any, clock: RunClock) -> None:
        self._handle = handle
        self._clock = clock

    def wait(self, *arguments: Any) -> Any:
        with self._clock.waiting_for_ranks():
            return self._handle.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
