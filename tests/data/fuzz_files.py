"""Coverage-guided fuzzing of everything that data files can hold; a program, not a test.

    pip install atheris==3.0.0            (Linux on x86-64, Python 3.11 to 3.13)
    python -m tests.data.fuzz_files TARGET FOLDER [-max_total_time=120 -max_len=400 ...]

TARGET is a name of `TARGETS`; FOLDER (a new one, best in memory) gets the files it works on, the
inputs worth keeping and the one that failed; the options are libFuzzer's. A crash, a wrong answer
or any exception but a one-line DataError ends it. `test_fuzz_files.py` runs the same checks on a
few inputs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rwkv_train.data.binidx.manifest import Manifest, manifest_path, read_manifest, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.chat.rows import Message, row_messages
from rwkv_train.data.chat.template import WORLD, load_template
from rwkv_train.data.inspect.examine import inspect, verify
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.text.blocks import TextBlock
from rwkv_train.data.text.inputs import FileRange, InputFile
from rwkv_train.data.text.jsonl import document_text, line_object
from rwkv_train.data.tokenize.block_encoder import TextEncoder
from rwkv_train.data.tokenize.bulk_encoder import BulkTokenizer, bulk_tokenizer
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError

# Below 2^15, so that an int16 reading of the same bytes gives the same ids; decodable as bytes.
ITEMS = [[7, 8, 0], [100, 0], [0], [*range(1, 40), 0]]
TOKENS = [token for item in ITEMS for token in item]


def one_line(error: DataError) -> None:
    """Fails unless the message is one line that says something."""
    text = str(error)
    assert text and "\n" not in text, text


def jsonl_line(content: bytes) -> None:
    """A line gives the text that the standard library's parser finds, or a reason."""
    try:
        text = document_text(content, "text")
    except DataError as error:
        one_line(error)
        return
    assert json.loads(content)["text"] == text
    text.encode()


def chat_row(content: bytes) -> None:
    """A line gives pieces of which some are learnt, in the rows' own words, or a reason."""
    try:
        row = row_messages(line_object(content, "{}"), "text")
        if not isinstance(row, str):
            segments = WORLD.segments(row)
            assert all(segment.text for segment in segments)
            assert any(segment.weight for segment in segments)
    except DataError as error:
        one_line(error)


class Template:
    """Any file: refused, or a template that learns something."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "template.yaml"

    def __call__(self, content: bytes) -> None:
        self._path.write_bytes(content)
        try:
            template = load_template(str(self._path))
        except DataError as error:
            one_line(error)
            return
        learnt = [name for name, role in template.roles.items() if role.weight]
        segments = template.segments([Message(learnt[0], "words")])
        assert sum("words" in segment.text and segment.weight > 0 for segment in segments) == 1


class Tokenizing:
    """A block of jsonl: the compiled trie and the library give the same, fault by fault."""

    def __init__(self, folder: Path) -> None:
        self._encoders = [
            TextEncoder(chosen, "text", "skip", 1, hashed=True)
            for chosen in (bulk_tokenizer("world"), BulkTokenizer("world"))
        ]
        self._piece = FileRange(InputFile("fuzz.jsonl", "jsonl", None, None))
        # Loads the tables, which would look like a slow input.
        self(b'{"text": "a"}')

    def __call__(self, content: bytes) -> None:
        block = TextBlock(self._piece, content, len(content))
        fast, slow = (encode(block) for encode in self._encoders)
        assert fast.tokens.tolist() == slow.tokens.tolist()
        assert fast.sizes.tolist() == slow.sizes.tolist()
        assert fast.faults == slow.faults
        assert (fast.digests == slow.digests).all()
        assert fast.text_bytes == slow.text_bytes
        assert fast.sizes.sum() == fast.tokens.size
        assert np.count_nonzero(fast.tokens == 0) == len(fast.sizes)


class Trie:
    """Any Unicode: the ids of the trie are those of the library."""

    def __init__(self, folder: Path) -> None:
        self._fast = bulk_tokenizer("world").load()
        self._slow = load_tokenizer("world")

    def __call__(self, content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        one = np.ones(1, bool)
        assert self._fast([text], ~one, one).tokens.tolist() == self._slow.encode(text)


class _Pair:
    """A sound pair in a folder of its own, whose files a target replaces."""

    def __init__(self, folder: Path) -> None:
        self.prefix = folder / "data"
        with BinidxWriter(self.prefix, "uint16") as writer:
            for item in ITEMS:
                writer.append(item)
        self.manifest = Manifest("bytes", 257, writer.tokens, 4, "uint16", writer.sha256)
        write_manifest(self.prefix, self.manifest)

    def replace(self, ending: str, content: bytes) -> None:
        Path(f"{self.prefix}.{ending}").write_bytes(content)

    def tokens_or_refusal(self) -> None:
        """What can be opened holds exactly what was written."""
        try:
            source = open_source(str(self.prefix), "binidx")
            assert source.get(0, source.tokens).tolist() == TOKENS
        except DataError as error:
            one_line(error)


class Index(_Pair):
    """Any .idx: refused, or the tokens are those that were written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        manifest_path(self.prefix).unlink()

    def __call__(self, content: bytes) -> None:
        self.replace("idx", content)
        self.tokens_or_refusal()
        try:
            inspect(str(self.prefix))
            assert int(Binidx(self.prefix).sizes.sum()) == len(TOKENS)
        except DataError as error:
            one_line(error)


class Bin(_Pair):
    """A .bin of any content: refused for its size, or else by `verify` for its digest."""

    def __call__(self, content: bytes) -> None:
        self.replace("bin", content)
        if content == np.array(TOKENS, "<u2").tobytes():
            verify(str(self.prefix), "all")
            return
        try:
            verify(str(self.prefix), "all")
        except DataError as error:
            one_line(error)
        else:
            raise AssertionError("wrong tokens were verified")


class Mask(_Pair):
    """A .mask of any content: refused for its size, or else by `verify` for its digest."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._weights = bytes(number % 3 for number in range(len(TOKENS)))
        digest = hashlib.sha256(self._weights).hexdigest()
        write_manifest(
            self.prefix, replace(self.manifest, sha256_mask=digest, supervised_tokens=30)
        )

    def __call__(self, content: bytes) -> None:
        self.replace("mask", content)
        try:
            verify(str(self.prefix), "none")
        except DataError as error:
            one_line(error)
        else:
            assert content == self._weights, "a wrong mask was verified"


class ManifestFile(_Pair):
    """Any manifest: refused, or the tokens are those that were written."""

    def __call__(self, content: bytes) -> None:
        manifest_path(self.prefix).write_bytes(content)
        try:
            found = read_manifest(self.prefix)
        except DataError as error:
            one_line(error)
            return
        assert found is not None and found.tokens >= 0
        self.tokens_or_refusal()
        try:
            inspect(str(self.prefix))
        except DataError as error:
            one_line(error)


# Each takes a folder to work in and gives what is to be called with contents.
TARGETS: dict[str, Callable[[Path], Callable[[bytes], None]]] = {
    "jsonl_line": lambda folder: jsonl_line,
    "tokenizing": Tokenizing,
    "trie": Trie,
    "index": Index,
    "bin": Bin,
    "manifest": ManifestFile,
    "mask": Mask,
    "chat_row": lambda folder: chat_row,
    "template": Template,
}


def seeds(folder: Path) -> list[bytes]:
    """Sound contents of every kind, to begin with."""
    pair = _Pair(folder)
    lines = [
        r'{"text": "a\u00e9\ud83d\ude00 \n\u0000"}',
        '{"text": "\u597d\U0001f600", "id": [1e5, {}]}',
        '{"messages": [{"role": "user", "content": "a", "weight": 0}, '
        '{"from": "gpt", "value": "b"}]}',
        '{"system": "s", "instruction": "i", "input": "j", "output": "o"}',
        'roles: {user: {before: "U:"}, assistant: {before: "A:", lead: " ", weight: 1}}',
        r'{"text": "\ud83d"}',
        '{"text": null}\n\n{"text": ""}\n[]\n{"body": 1}\n',
    ]
    files = [Path(f"{pair.prefix}{ending}") for ending in (".idx", ".bin", ".manifest.json")]
    mask = bytes(number % 3 for number in range(len(TOKENS)))
    return [line.encode() for line in lines] + [mask] + [file.read_bytes() for file in files]


def main(argv: list[str]) -> None:
    """See above; libFuzzer never returns."""
    import atheris

    if len(argv) < 3 or argv[1] not in TARGETS:
        sys.exit(f"error: give TARGET ({', '.join(TARGETS)}) and FOLDER")
    folder = Path(argv[2])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(seeds(folder)):
        (corpus / str(number)).write_bytes(seed)
    target = TARGETS[argv[1]](folder)
    for module in (
        "jsonl",
        "binidx",
        "manifest",
        "sources",
        "token_store",
        "encode",
        "masks",
        "chat_rows",
        "chat_template",
    ):
        _instrument(atheris, sys.modules[f"rwkv_train.data.{module}"])
    atheris.Setup([argv[0], *argv[3:], f"-artifact_prefix={folder}/", str(corpus)], target)
    atheris.Fuzz()


def _instrument(atheris, module) -> None:
    """Counts the branches of a module's functions."""
    for name, value in list(vars(module).items()):
        if callable(value) and getattr(value, "__module__", None) == module.__name__:
            if isinstance(value, type):
                for key, method in list(vars(value).items()):
                    if hasattr(method, "__code__"):
                        setattr(value, key, atheris.instrument_func(method))
            elif hasattr(value, "__code__"):
                setattr(module, name, atheris.instrument_func(value))


if __name__ == "__main__":
    main(sys.argv)
