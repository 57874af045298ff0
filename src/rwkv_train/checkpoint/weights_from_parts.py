"""The weights in the parts of a training state, written as a .pth file by a process of its own.

    python -m rwkv_train.checkpoint.weights_from_parts FOLDER FILE FORMAT ABOUT

FORMAT: fp32, bf16 or fp16; ABOUT: what the file says of itself, JSON. Prints the file's SHA-256.
One tensor is in memory at a time. The trainer calls it, and holds its standard input open: where
that ends, the trainer has, and nobody needs the file.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.state_folder import read_parts
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.errors import CheckpointError

# Training has the processors first.
_NICENESS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with one line on stderr."""
    folder, path, dtype, about = sys.argv[1:] if argv is None else argv
    with suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        # Converted while they are read: no tensor is in memory in two formats.
        weights = read_parts(Path(folder))["weights"].converted(DTYPES[dtype])
        save_weights(Path(path), weights, DTYPES[dtype], json.loads(about))
        print(file_digest(Path(path)))
    except CheckpointError as error:
        print(error.in_one_line(), file=sys.stderr)
        return 2
    return 0


def _end_with_parent() -> None:
    # Not by sys.stdin, whose lock the end of this program would wait for.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
