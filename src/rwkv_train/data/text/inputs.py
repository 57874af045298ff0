"""The files a corpus lies in: how they are packed, and how machines divide them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rwkv_train.data.text.file_kind import HEAD_BYTES, Kind, format_of
from rwkv_train.data.text.unpack import COMPRESSION_ENDINGS, Compression, unpacking_errors
from rwkv_train.errors import DataError

STANDARD_INPUT = "-"


class InputFile(NamedTuple):
    """One input and what its first bytes say that it holds (`file_kind`).

    Of a pipe they are read together with the rest: kind and compression are not known before.
    """

    path: str
    kind: Kind
    compression: Compression | None
    size: int | None
    """bytes on disk; None for the standard input and other pipes"""


class FileRange(NamedTuple):
    """A file, or the lines of it that begin in [start, end); end None: the whole file."""

    file: InputFile
    start: int = 0
    end: int | None = None


def find_inputs(names: Sequence[str]) -> list[InputFile]:
    """Finds the files of those names and patterns in the order given, a pattern's files sorted.

    Raises DataError when one does not exist or a pattern fits nothing.
    """
    files: list[InputFile] = []
    for name in names:
        if name == STANDARD_INPUT:
            if len(names) > 1:
                raise DataError("the standard input (-) cannot be joined with files")
            files.append(InputFile(name, "jsonl", None, None))
        # Before patterns: a file's own name may hold brackets, which a pattern reads otherwise.
        elif Path(name).is_dir():
            raise DataError(_folder_advice(Path(name)))
        elif Path(name).exists():
            files.append(_input_file(name))
        else:
            files += [_input_file(path) for path in _matches(name)]
    return files


def output_prefix(given: str | None, files: Sequence[InputFile]) -> str:
    """Returns the output prefix: the one given, or named after the single input.

    A folder, which ends in a slash or is . or .., gets that name in it. Raises DataError for an
    empty prefix and where a name is needed.
    """
    if given is None:
        return default_prefix(files)
    if not given:
        raise DataError("--output is empty; give the path of the data without .bin, or FOLDER/")
    return str(Path(given) / default_prefix(files)) if names_folder(given) else given


def names_folder(prefix: str) -> bool:
    """Tells whether a prefix has no name for files in it: they would be hidden ones."""
    # Not its parts of pathlib, which drops a slash and a dot at the end.
    return prefix.replace("\\", "/").rpartition("/")[2] in ("", ".", "..")


def default_prefix(files: Sequence[InputFile]) -> str:
    """Returns the output prefix named after a single input; DataError for others."""
    if len(files) != 1 or files[0].size is None:
        raise DataError(
            "--output PREFIX is needed for several inputs and for the standard input; a folder "
            "alone does not name the data"
        )
    path = Path(files[0].path)
    return Path(path.stem).stem if path.suffix in COMPRESSION_ENDINGS else path.stem


def total_bytes(files: Sequence[InputFile]) -> int | None:
    """Returns the bytes on disk of all inputs; None when not known (a pipe)."""
    if any(file.size is None for file in files):
        return None
    return sum(file.size or 0 for file in files)


def file_ranges(files: Sequence[InputFile], worker: int = 0, of: int = 1) -> list[FileRange]:
    """Returns the part of the inputs that machine `worker` of `of` (counted from 0) processes.

    The bytes of all files, one after another, are cut into `of` equal stretches. An uncompressed
    jsonl is cut there: a line belongs to the stretch in which it begins. Every other file belongs
    as a whole to the stretch in which it begins.
    """
    if of == 1:
        # No size is needed here, and the standard input has none.
        return [FileRange(file) for file in files]
    total = total_bytes(files)
    if total is None:
        raise DataError("a pipe (the standard input) cannot be divided; --worker needs files")
    # In integers: one machine's end is exactly the next one's start, for data of any size.
    low, high = total * worker // of, total * (worker + 1) // of
    chosen, begin = [], 0
    for file in files:
        size = file.size or 0
        if file.kind == "jsonl" and file.compression is None:
            start, end = max(low - begin, 0), min(high - begin, size)
            if start < end:
                chosen.append(FileRange(file, start, end))
        elif low <= begin < high:
            chosen.append(FileRange(file))
        begin += size
    return chosen


def _matches(pattern: str) -> list[str]:
    # Path.glob takes no absolute patterns.
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207
    # glob lists in the file system's order, but the output must be the same on every machine.
    found = sorted(name for name in names if Path(name).is_file())
    if not found:
        reason = "no file fits this pattern" if glob.has_magic(pattern) else "there is no such file"
        raise DataError(f"{pattern}: {reason}")
    return found


def _input_file(name: str) -> InputFile:
    path = Path(name)
    if not path.is_file():
        # A pipe, such as /dev/stdin or <(command): what is read of it now would be missing later.
        return InputFile(name, "jsonl", None, None)
    with unpacking_errors(name), path.open("rb") as file:
        found = format_of(name, file.read(HEAD_BYTES))
    return InputFile(name, found.kind, found.compression, path.stat().st_size)


def _folder_advice(folder: Path) -> str:
    endings = Counter(path.suffix for path in folder.iterdir() if path.is_file())
    if not endings:
        return f"{folder} is a folder without files; name files, or '{folder}/**/*.jsonl'"
    told = ", ".join(
        f"{count} {ending or 'without ending'}" for ending, count in sorted(endings.items())
    )
    frequent = endings.most_common(1)[0][0]
    return f"{folder} is a folder ({told}); name its files: '{folder}/*{frequent}'"
