"""The name `run.lock` in a folder: given to a complete file at once, and never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rwkv_train.errors import ConfigError


class UnwritableFolderError(ConfigError):
    """Raised for a folder that cannot be taken because its disk lets nobody write."""


class FolderInUseError(ConfigError):
    """Raised for a folder in which another run works, which may end soon."""


def require_plain(path: Path) -> None:
    """Raises ConfigError for a link, a folder, a pipe and the like in the lock's place."""
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    kind = kinds.get(stat.S_IFMT(mode), "no plain file")
    raise ConfigError(
        f"{path} is {kind}, and a run keeps the name of its process in a file there; move it away, "
        "or choose another --proj_dir"
    )


def link_once(partial: Path, path: Path) -> bool:
    """Gives a complete file a second name; False when that name is taken."""
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        return False
    except (OSError, NotImplementedError):
        # A file system without links.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        partial.replace(path)
    return True
