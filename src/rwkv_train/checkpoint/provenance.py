"""Words of a .pth file about itself: the place of numbered weights, the loss of the best."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A part of the archive that torch writes, with a name that it does not use.
_ABOUT = "archive/rwkv_train.json"


def read_about(path: Path) -> dict[str, Any] | None:
    """Returns what `save_weights` wrote about a .pth file, {} for one without; None: no file."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(_ABOUT))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return {}
    return found if isinstance(found, dict) else {}


def tokens_before(path: Path, epoch: int) -> int | None:
    """Returns the tokens after which a numbered file was written, None when it does not say.

    A pause writes the mini-epoch that it falls into, whose rest is still to be trained.
    """
    about = read_about(path) or {}
    tokens = about.get("tokens")
    # A file that was given another number stands for what its name says, as one of RWKV-LM's.
    same = epoch >= 0 and about.get("epoch") == epoch
    return tokens if same and isinstance(tokens, int) else None


def write_about(path: Path, about: Mapping[str, Any]) -> None:
    """Adds plain values to a .pth file, which `read_about` gives back; raises OSError."""
    # In the file itself, so that it stays with the weights wherever they are copied. With a fixed
    # date: equal weights are equal files.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_ABOUT), json.dumps(about))
