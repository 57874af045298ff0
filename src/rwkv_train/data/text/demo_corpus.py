"""A few megabytes of real text that every machine has: the sources of Python's standard library.

    python -m rwkv_train.data.text.demo_corpus OUTPUT.jsonl [--max_megabytes 6]

Each file is one document. Files come in the order of a digest of their path and stop at the limit,
so that two Python versions give nearly the same corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import orjson

from rwkv_train.command_line import program
from rwkv_train.data.storage.durable import writing
from rwkv_train.errors import DataError, TrainerError
from rwkv_train.files import write_atomically

_ENDINGS = (".py", ".rst", ".txt")
# Installed packages are not part of Python; test data and code tables hardly read like programs.
_SKIPPED_FOLDERS = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings")
)
# Describes the machine Python was built on.
_SKIPPED_PREFIX = "_sysconfigdata"
# Bounds of one document: no empty package markers, no single file that outweighs the others.
_MIN_BYTES = 200
_MAX_BYTES = 300_000
# Less than this can only be a Python that was installed without its sources.
_MIN_CORPUS_BYTES = 200_000


def standard_library() -> Path:
    """Returns the standard library's folder, also inside a virtual environment."""
    return Path(sysconfig.get_path("stdlib"))


def documents(library: Path) -> Iterator[str]:
    """Yields the library's sources and plain-text documentation in a fixed order."""
    names = [path.relative_to(library).as_posix() for path in _files(library)]
    # Not by name: the limit would then always cut off the end of the alphabet.
    for name in sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        try:
            text = (library / name).read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError):
            continue
        if _MIN_BYTES <= len(text.encode()) <= _MAX_BYTES:
            yield text


def build_corpus(library: Path, max_bytes: int) -> tuple[bytes, int, int]:
    """Returns the jsonl contents, the number of documents and their UTF-8 bytes."""
    lines, size = [], 0
    for text in documents(library):
        length = len(text.encode())
        if size + length > max_bytes:
            break
        size += length
        lines.append(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines), len(lines), size


def write_corpus(output: Path, library: Path, max_bytes: int) -> str:
    """Writes the corpus and returns a line about it; DataError when it is too small to use.

    A file that is already there is left alone: it must have the same contents.
    """
    content, count, size = build_corpus(library, max_bytes)
    if size < min(_MIN_CORPUS_BYTES, max_bytes // 2):
        raise DataError(
            f"{library} holds only {size} bytes of Python sources (installed without them?); give "
            "a jsonl file of your own instead"
        )
    about = f"{output}: {count} files of Python's standard library, {size / 1e6:.1f} MB"
    if output.exists():
        if output.read_bytes() != content:
            raise DataError(f"{output} exists with other contents; remove it or give another name")
        return f"{about} (already there)"
    with writing(output):
        write_atomically(output, content)
    return about


@program
def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 2 after an error message."""
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_train.data.text.demo_corpus", description=__doc__
    )
    parser.add_argument("output", metavar="OUTPUT.jsonl", type=Path)
    parser.add_argument("--max_megabytes", type=float, default=6.0, help="limit (default: 6)")
    arguments = parser.parse_args(argv)
    try:
        max_bytes = int(arguments.max_megabytes * 1e6)
        print(write_corpus(arguments.output, standard_library(), max_bytes))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _files(folder: Path) -> Iterator[Path]:
    """Yields the sources and documentation below a folder."""
    for path in folder.iterdir():
        # A link leads out of the library (Debian's sitecustomize).
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS:
                yield from _files(path)
        elif path.suffix in _ENDINGS and not path.name.startswith(_SKIPPED_PREFIX):
            yield path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
