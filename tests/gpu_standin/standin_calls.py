"""Calls that test_standin.py makes in processes of their own: `python -m ... CASE`, on a stand-in.

The exit status is that of CUDA for the case's call, modulo 256.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

import torch

from tests.gpu_standin.asking import let_ask

KIB = 1 << 10
MAX_DYNAMIC_SHARED = 8  # cudaFuncAttributeMaxDynamicSharedMemorySize


class Dim3(ctypes.Structure):
    """CUDA's dim3."""

    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


class Calls:
    """CUDA's functions, of the stand-in."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self.library.cudaLaunchKernel.argtypes = [
            *(ctypes.c_void_p, Dim3, Dim3, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
        ]

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int = 0) -> int:
        """Launches a kernel that nobody has registered."""
        return self.library.cudaLaunchKernel(1, Dim3(*grid), Dim3(*block), None, shared, None)

    def ask_for_shared(self, count: int) -> int:
        """Asks for so much shared memory for that kernel."""
        return self.library.cudaFuncSetAttribute(ctypes.c_void_p(1), MAX_DYNAMIC_SHARED, count)

    def mark(self, text: str) -> None:
        """Writes a mark into the log."""
        self.library.standin_mark(text.encode())


def steps(calls: Calls) -> int:
    """Makes two steps of known cost."""
    calls.mark("step 0")
    calls.launch((1, 1, 1), (32, 1, 1))
    calls.mark("step 1")
    calls.launch((1, 1, 1), (32, 1, 1))
    calls.launch((1, 1, 1), (32, 1, 1))
    calls.library.cudaDeviceSynchronize()
    calls.library.cudaStreamSynchronize(None)
    one, other = ctypes.c_int(1), ctypes.c_int(0)
    calls.library.cudaMemcpy(ctypes.byref(other), ctypes.byref(one), ctypes.c_size_t(4), 0)
    calls.mark("step 2")
    return 0 if other.value == 1 else 1


def fork(calls: Calls) -> int:
    """Marks a process and its copy."""
    calls.mark("parent")
    if os.fork() == 0:
        calls.mark("child")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1])


def head(calls: Calls) -> int:
    """Computes the loss of 300 tokens in three slices, and its gradients."""
    from rwkv_train.ops.head_loss import Targets, head_loss

    x = torch.zeros(2, 150, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    weight = torch.zeros(1000, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    targets = Targets(torch.zeros(2, 150, dtype=torch.int64, device="cuda"), rows=100)
    calls.mark("head")
    loss = head_loss(x, weight, targets, backend="native")
    calls.mark("backward")
    loss.backward()
    calls.mark("end")
    return 0


def join() -> int:
    """Enters the group of the ranks and returns this one."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    return rank


def collectives(calls: Calls) -> int:
    """Compares the collectives' results, computed by copies alone, with the right ones."""
    rank = join()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        own = torch.tensor([rank + 1, 10 * (rank + 1)], dtype=dtype)
        both = [torch.tensor([r + 1, 10 * (r + 1)], dtype=dtype) for r in (0, 1)]
        summed = own.cuda()
        torch.distributed.all_reduce(summed)
        assert torch.equal(summed.cpu(), both[0] + both[1]), f"all_reduce of {dtype}"
        largest = own.cuda()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        assert torch.equal(largest.cpu(), both[1]), f"the largest of {dtype}"
        gathered = torch.empty(4, dtype=dtype, device="cuda")
        torch.distributed.all_gather_into_tensor(gathered, own.cuda())
        assert torch.equal(gathered.cpu(), torch.cat(both)), f"all_gather of {dtype}"
        part = torch.empty(1, dtype=dtype, device="cuda")
        torch.distributed.reduce_scatter_tensor(part, own.cuda())
        assert torch.equal(part.cpu(), (both[0] + both[1])[rank : rank + 1]), "reduce_scatter"
        told = own.cuda()
        torch.distributed.broadcast(told, src=1)
        assert torch.equal(told.cpu(), both[1]), f"broadcast of {dtype}"
        mean = own.cuda()
        torch.distributed.reduce(mean, dst=0)
        assert rank == 1 or torch.equal(mean.cpu(), both[0] + both[1]), f"reduce of {dtype}"
    return 0


def messages(calls: Calls) -> int:
    """Lets each of the ranks tell the other two things, in both directions at once."""
    rank = join()
    for told in (1, 2):
        own = torch.tensor([10 * rank + told, -told], dtype=torch.bfloat16).cuda()
        received = torch.empty_like(own)
        pair = [
            torch.distributed.P2POp(torch.distributed.isend, own, 1 - rank),
            torch.distributed.P2POp(torch.distributed.irecv, received, 1 - rank),
        ]
        for work in torch.distributed.batch_isend_irecv(pair):
            work.wait()
        assert received.tolist() == [10 * (1 - rank) + told, -told], received
    return 0


def differ(how: str) -> Callable[[Calls], int]:
    """Returns a call in which the two ranks do not do the same."""

    def call(calls: Calls) -> int:
        rank = join()
        count = 2 + rank if how == "other-size" else 2
        dtype = torch.int32 if how == "other-type" and rank else torch.float32
        values = torch.zeros(count, dtype=dtype).cuda()
        maximum = how == "other-reduction" and rank
        op = torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        if how == "other-call" and rank:
            torch.distributed.broadcast(values, src=0)
        else:
            torch.distributed.all_reduce(values, op)
        return 0

    return call


CASES: dict[str, Callable[[Calls], int]] = {
    "right-launch": lambda calls: calls.launch((4, 2, 1), (256, 4, 1), 48 * KIB),
    "empty-grid": lambda calls: calls.launch((0, 1, 1), (32, 1, 1)),
    "tall-grid": lambda calls: calls.launch((1, 65536, 1), (32, 1, 1)),
    "large-block": lambda calls: calls.launch((1, 1, 1), (1025, 1, 1)),
    "deep-block": lambda calls: calls.launch((1, 1, 1), (1, 1, 65)),
    "shared-unasked": lambda calls: calls.launch((1, 1, 1), (32, 1, 1), 48 * KIB + 1),
    "shared-107-kib": lambda calls: calls.ask_for_shared(107 * KIB),
    "missing": lambda calls: calls.library.cublasZherk_v2(),
    "steps": steps,
    "head": head,
    "fork": fork,
    "collectives": collectives,
    "messages": messages,
    **{how: differ(how) for how in ("other-size", "other-type", "other-call", "other-reduction")},
}

if __name__ == "__main__":
    let_ask()
    sys.exit(CASES[sys.argv[1]](Calls()) % 256)
