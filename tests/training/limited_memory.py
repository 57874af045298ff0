"""Starts runs one after another in a process whose addresses are limited, as by `ulimit -v`.

    python -m tests.training.limited_memory BYTES_TO_SPARE PROJ_DIR

A run that fits; one that does not, which is refused; the same by force; and again with the first of
the changes that the refusal has named.  Prints a line before each, and its status after it.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import sys
from pathlib import Path

# Imported before the limit is set, so that it is known what a run has to spare.
import rwkv_train.training.run  # noqa: F401
import train
from rwkv_train.training.start import memory_limits

LARGE = ("--head_chunk", "2048", "--max_steps", "2")


def flags(folder: str) -> list[str]:
    """The flags of a tiny model whose logits are large: 2048 tokens of 65536 fp32 numbers."""
    return [
        *("--data_type", "dummy", "--accelerator", "cpu", "--num_workers", "0", "--plot", "0"),
        *("--rwkv_version", "4", "--n_layer", "1", "--n_embd", "32", "--vocab_size", "65536"),
        *("--ctx_len", "2048", "--micro_bsz", "1", "--keep_heap", "0", "--proj_dir", folder),
        *("--epoch_save", "1", "--save_in_background", "0"),
    ]


def limit_addresses(spare: int) -> None:
    """Lets this process have so many bytes of addresses more than it has now."""
    status = Path("/proc/self/status").read_text()
    kilobytes = re.search(r"VmSize:\s*(\d+)", status)
    assert kilobytes is not None, "Linux tells it"
    most = (int(kilobytes[1]) << 10) + spare
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(spare: int, folder: str) -> None:
    """Runs all four."""
    # All has been imported: nothing is to come.
    memory_limits.ADDRESSES_TO_COME = 0
    limit_addresses(spare)
    print("status", train.main([*flags(folder), "--head_chunk", "256", "--max_steps", "1"]))
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        status = train.main([*flags(folder), *LARGE])
    print("refused", words.getvalue().strip())
    print("status", status)
    print("status", train.main([*flags(folder), *LARGE, "--skip_memory_check", "1"]), flush=True)
    named = re.search(r"take (--.*?) \(", words.getvalue())
    assert named is not None, words.getvalue()
    print("status", train.main([*flags(folder), "--max_steps", "2", *named[1].split()]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
