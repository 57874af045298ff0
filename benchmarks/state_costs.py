"""What `benchmarks.state_saving` measures with: anonymous memory, and what a plain copy takes."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

# More than any cache of a processor holds.
_COPIED_BYTES = 256 << 20


class PeakMemory:
    """Watches how many bytes of anonymous memory this process has more than when it began."""

    def __enter__(self) -> PeakMemory:
        self._before, self.peak = _anonymous(), 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *fault: object) -> None:
        self._ended.set()
        self._watcher.join()
        # On a busy machine the watcher may have slept through the end.
        self.peak = max(self.peak, _anonymous() - self._before)

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.peak = max(self.peak, _anonymous() - self._before)


def _anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("Linux alone counts anonymous memory")


class Memcpy:
    """Copies with nothing else, to memory that is there."""

    def __init__(self) -> None:
        self._buffer = torch.ones(_COPIED_BYTES, dtype=torch.uint8)

    def seconds(self, values: Iterable[Tensor]) -> float:
        """Seconds of the processor to copy these once."""
        used = time.thread_time()
        for value in values:
            for first in range(0, value.nbytes, _COPIED_BYTES):
                count = min(_COPIED_BYTES, value.nbytes - first)
                ctypes.memmove(self._buffer.data_ptr(), value.data_ptr() + first, count)
        return time.thread_time() - used


# What the process of its own runs, and what it says of its memory in bytes before and behind it.
_WRITES_WEIGHTS = """
import sys
from pathlib import Path
from rwkv_train.checkpoint.weights_from_parts import main
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
before = peak()
assert main(sys.argv[1:]) == 0
print(before, peak())
"""


def weights_memory(state: Path, target: Path) -> tuple[int, int]:
    """Bytes of the process that writes a bf16 .pth out of a folder: in the beginning, at most."""
    words = [sys.executable, "-c", _WRITES_WEIGHTS, str(state), str(target), "bf16", json.dumps({})]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as own:
        assert own.stdout is not None, "it is a pipe"
        before, most = map(int, own.stdout.read().splitlines()[-1].split())
    return before, most
