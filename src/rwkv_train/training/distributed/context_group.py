"""The processes that share the tokens of a sample: `models.token_ranks` over torch's groups.

Ranks of a sample follow one another, so that a machine holds whole groups where it can. The group
has a communicator of its own: sums of gradients run beside it on the world's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from torch import Tensor, distributed

from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.models.token_ranks import Awaited, Told
from rwkv_train.training.run_clock import RunClock


class ContextGroup:
    """A `TokenRanks` of processes.

    group: torch's.  ranks: of the world, by their place in it.
    waits: a context around every wait for an exchange.
    """

    def __init__(
        self,
        group: distributed.ProcessGroup,
        ranks: Sequence[int],
        waits: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._group = group
        self._ranks = ranks
        self._waits = waits
        self.rank, self.size = distributed.get_rank(group), len(ranks)

    def gather(self, own: Tensor) -> Awaited[list[Tensor]]:
        """Returns what every rank passes, by rank. Collective."""
        told = [torch.empty_like(own) for _ in self._ranks]
        sent = distributed.all_gather(told, own.contiguous(), group=self._group, async_op=True)
        return self._awaited([sent], told)

    def pass_on(self, own: Tensor, distance: int) -> Awaited[Tensor | None]:
        """Hands `own` on by `distance` ranks; returns what comes, None at the end. Collective."""
        target, source = self.rank + distance, self.rank - distance
        own, received = own.contiguous(), torch.empty_like(own)
        calls = [
            distributed.P2POp(call, tensor, self._ranks[peer], self._group)
            for call, tensor, peer in (
                (distributed.isend, own, target),
                (distributed.irecv, received, source),
            )
            if 0 <= peer < self.size
        ]
        sent = distributed.batch_isend_irecv(calls) if calls else []
        return self._awaited(sent, received if 0 <= source < self.size else None)

    def of_last(self, own: Tensor) -> Awaited[Tensor]:
        """Returns what the last rank passes. Collective."""
        told = own.detach().clone()
        sent = distributed.broadcast(told, self._ranks[-1], group=self._group, async_op=True)
        return self._awaited([sent], told)

    def sum(self, own: Tensor) -> Awaited[Tensor]:
        """Returns the sum of what all ranks pass. Collective."""
        total = own.detach().clone()
        sent = distributed.all_reduce(total, group=self._group, async_op=True)
        return self._awaited([sent], total)

    def _awaited(self, sent: Sequence[distributed.Work | None], told: Told) -> Awaited[Told]:
        def finish() -> Told:
            with self._waits():
                for work in sent:
                    assert work is not None, "this process is one of the group"
                    work.wait()
            return told

        return Awaited(finish)

    def once(self, tell: Callable[[], Told]) -> Told:
        """Returns what `tell` does."""
        return tell()


def begin_context_group(
    hardware: ResolvedHardware, step_seconds: float, clock: RunClock
) -> ContextGroup | None:
    """Returns this process's group, None where each process has samples of its own. Collective.

    step_seconds: how long an exchange may wait.  clock: of the run, told of waits on a CPU; on a
    card the host only launches exchanges.
    """
    if hardware.context_parallel == 1:
        return None
    group, _ = distributed.new_subgroups(  # type: ignore[no-untyped-call]  # torch's own
        hardware.context_parallel, timeout=timedelta(seconds=step_seconds)
    )
    on_gpu = hardware.accelerator == "gpu"
    waits = nullcontext if on_gpu else clock.waiting_for_ranks
    found = ContextGroup(group, distributed.get_process_group_ranks(group), waits)
    # NCCL wants all ranks in a communicator's first call, and not all of them have a neighbour.
    found.sum(torch.zeros(1, device="cuda" if on_gpu else "cpu")).result()
    return found
