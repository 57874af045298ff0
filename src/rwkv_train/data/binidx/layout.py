"""Layout of the binidx pair: tokens in PREFIX.bin, their index in PREFIX.idx.

It is the memory-mapped index format of Megatron-style trainers, version 1, as RWKV-LM uses it.
`.bin` holds the tokens of all items one after another, nothing else. `.idx`, all little endian and
nothing aligned, n = number of items, m = number of document boundaries:

    offset     bytes  type    content
    0          9      bytes   "MMIDIDX" and two zero bytes
    9          8      uint64  version, 1
    17         1      uint8   data type code (DTYPES)
    18         8      uint64  n
    26         8      uint64  m
    34         4n     int32   sizes: tokens per item
    34 + 4n    8n     int64   pointers: byte offset of each item in .bin
    34 + 12n   8m     int64   document index: item with which each document starts; ends with n

`make_data.py` writes one item per document, so m = n + 1; other tools write several. Training reads
the whole .bin as one array of tokens and looks at neither.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_train.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
# "<" also switches off the alignment of C structs, which would put gaps between the fields.
HEADER = struct.Struct("<9sQBQQ")
DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {
    1: np.dtype("uint8"),
    2: np.dtype("int8"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    # The two floats are known only so that they can be refused by name.
    6: np.dtype("<f4"),
    7: np.dtype("<f8"),
    8: np.dtype("<u2"),
}
# Sizes are int32.
MAX_ITEM_TOKENS = 2**31 - 1
# A loss mask holds a byte per token.
LARGEST_WEIGHT = 255
BIN_ENDING, IDX_ENDING, MASK_ENDING = ".bin", ".idx", ".mask"


def bin_path(prefix: str | Path) -> Path:
    """Returns PREFIX.bin (the prefix may contain dots)."""
    return Path(f"{prefix}{BIN_ENDING}")


def mask_path(prefix: str | Path) -> Path:
    """Returns PREFIX.mask, the loss mask next to a pair (`loss_mask`)."""
    return Path(f"{prefix}{MASK_ENDING}")


def idx_path(prefix: str | Path) -> Path:
    """Returns PREFIX.idx."""
    return Path(f"{prefix}{IDX_ENDING}")


def dtype_code(dtype: np.dtype[Any]) -> int:
    """Returns the code of an integer type; DataError for one the format lacks (uint32, floats)."""
    for code, known in DTYPE_OF_CODE.items():
        if known == dtype and known.kind in "iu":
            return code
    raise DataError(f"binidx has no token type {dtype}; use uint16 or int32")
