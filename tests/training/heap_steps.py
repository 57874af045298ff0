"""Counts page faults of steps before and after a process keeps its heap, and what a fork returns.

python -m tests.training.heap_steps
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

from rwkv_train.ops.head_loss import Targets
from rwkv_train.training import kept_heap
from rwkv_train.training.kept_heap import give_back_heap, huge_page_bytes, keep_heap
from tests.models.tiny import random_tokens, tiny_model

MODEL = tiny_model("4", n_layer=1, n_embd=128)


def step(time: int) -> None:
    """Makes one training step without an optimizer over `time` tokens in each of 8 rows."""
    tokens = random_tokens(8, time + 1)
    MODEL.loss(tokens[:, :-1], Targets(tokens[:, 1:])).backward()
    MODEL.zero_grad(set_to_none=True)


def faults_of_a_step(time: int = 256) -> int:
    """Returns the page faults of a step of a kind: the fewest of three, after three others."""
    counts = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step(time)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts[3:])


def resident_bytes() -> int:
    """Returns the memory of this process that is there."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def given_back_in_a_fork() -> int:
    """Returns the bytes that a forked process gives back to the system with its heap."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        before = resident_bytes()
        give_back_heap()
        os.write(writing, str(before - resident_bytes()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 100))


def main() -> int:
    """Prints the counts; returns the exit status."""
    # OpenMP's threads would not be there in the fork.
    torch.set_num_threads(1)
    # glibc raises its limits by itself once a large block was freed, as a process that has done
    # other work has; said explicitly, they stay.
    for option, value in kept_heap._GLIBC_DEFAULTS.items():
        kept_heap._libc().mallopt(option, value)
    found: dict[str, object] = {"before": faults_of_a_step(), "text": keep_heap()}
    found["kept"] = faults_of_a_step()
    step(512)
    found["another length"] = faults_of_a_step(200)
    found["huge pages"] = huge_page_bytes()
    found["given back"] = given_back_in_a_fork()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
