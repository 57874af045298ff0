"""Vocabularies as RWKV publishes them, rwkv_vocab_v20230424.txt and others of its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rwkv

from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.inspect.examine import verify
from rwkv_train.data.tokenize.bulk_encoder import BulkTokenizer, bulk_tokenizer
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError

WORLD = Path(rwkv.__path__[0]) / "rwkv_vocab_v20230424.txt"
BYTES = [f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256)]
# A token that would end a line for str.splitlines, one with spaces and quotes in it.
MORE = ["257 'Hello' 5\n", "258 'Hell' 4\n", "260 '\u2028 x' 5\n", "261 \" 'o' \" 5\n"]


def file_of(folder, lines, name="vocab.txt"):
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return str(folder / name)


def test_world_s_own_file_is_the_world_tokenizer(tmp_path):
    assert load_tokenizer(str(WORLD)).name == "world"
    (tmp_path / "rwkv_vocab_v20230424.txt").write_bytes(WORLD.read_bytes())
    assert load_tokenizer(str(tmp_path)).name == "world"


def test_another_one_takes_the_longest_match_and_gives_every_text_back(tmp_path):
    ours = load_tokenizer(file_of(tmp_path, BYTES + MORE))
    assert ours.vocab_size == 262
    assert ours.encode("HelloHellHel") == [257, 258, ord("H") + 1, ord("e") + 1, ord("l") + 1]
    assert ours.encode("\u2028 x 'o' ") == [260, 261]
    for text in ("", "é😀\0", "Hello 'o' \u2028 x"):
        assert ours.decode_bytes([*ours.encode(text), 0]) == text.encode()
    assert ours.decode([259]) == "\ufffd"


def test_the_compiled_trie_gives_the_same_ids(tmp_path):
    name = file_of(tmp_path, BYTES + MORE)
    texts, one = ["Hello Hell é", "\u2028 x 'o' "], np.ones(2, bool)
    fast, slow = (
        chosen.load()(texts, one, one) for chosen in (bulk_tokenizer(name), BulkTokenizer(name))
    )
    assert fast.tokens.tolist() == slow.tokens.tolist()
    assert bulk_tokenizer(name).library is not None


def test_data_is_made_with_it_and_known_by_its_contents(tmp_path):
    name = file_of(tmp_path, BYTES + MORE)
    (tmp_path / "in.jsonl").write_text('{"text": "Hello"}\n')
    options = ConvertOptions([str(tmp_path / "in.jsonl")], str(tmp_path / "out"), tokenizer=name)
    (manifest,) = convert(options).manifests.values()
    assert (manifest.tokenizer, manifest.vocab_size, manifest.tokens) == (name, 262, 2)
    assert verify(options.prefix, "all")
    file_of(tmp_path, [*BYTES, *MORE, "262 'more' 4\n"])
    with pytest.raises(DataError, match="different: tokenizer"):
        convert(options)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["1 'a' 1\n", "2 'b' 2\n"], r"vocab\.txt, line 2: expected `id 'token' bytes`"),
        (["1 'a' 1\n", "1 'b' 1\n"], "line 2: expected"),
        (["1 'a' 1\n", "2 __import__('os') 9\n"], "line 2: expected"),
        (["1 'a' 1\n", "2 b 1\n"], "line 2: expected"),
        (["1 'a' 1\n", "nonsense\n"], "line 2: expected"),
        (BYTES[:255], "no token for the single byte 0xff"),
        (['{"version": 1}'], "not a usable tokenizer.json"),
        ([""], "not a usable tokenizer.json"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(lines, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        load_tokenizer(file_of(tmp_path, lines))


def test_folders_without_a_readable_tokenizer_name_the_next_step(tmp_path):
    with pytest.raises(DataError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x05")
    with pytest.raises(DataError, match=r"tokenizer\.model, which is not read; transformers makes"):
        load_tokenizer(str(tmp_path))
