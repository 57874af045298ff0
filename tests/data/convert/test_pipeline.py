"""jsonl to binidx: the reference's bytes, seeded orders, round trip, and no half-made output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from rwkv_train.data.binidx import manifest as manifest_module
from rwkv_train.data.binidx import shards as shards_module
from rwkv_train.data.binidx.manifest import read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.convert.pipeline import convert
from rwkv_train.data.convert.select import random_order
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.tokenize import block_encoder as encode_module
from rwkv_train.errors import DataError
from tests.data.corpora import documents_of, options_for
from tests.helpers import VECTORS, load_json


def outputs(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "in.jsonl")


LETTERS = [chr(ord("a") + i) for i in range(26)]


def test_the_vectors_texts_become_the_vectors_bytes(tmp_path):
    vector = load_json("binidx_small")
    made = convert(options_for(tmp_path, vector["texts"], tokenizer="world", shuffle=False))
    for ending in ("bin", "idx"):
        written = (tmp_path / f"out.{ending}").read_bytes()
        assert written == (VECTORS / f"binidx_small.{ending}").read_bytes()
    manifest = made.manifests[str(tmp_path / "out")]
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.tokenizer, manifest.vocab_size) == ("world", 65536)
    assert (manifest.tokens, manifest.documents, manifest.dtype) == (46, 8, "uint16")
    assert manifest.sha256_bin == vector["bin_sha256"] == file_sha256(tmp_path / "out.bin")
    assert outputs(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]


def test_every_repetition_holds_every_document_in_another_order(tmp_path):
    convert(options_for(tmp_path, LETTERS, repeats=3))
    written = documents_of(tmp_path / "out")
    parts = [written[:26], written[26:52], written[52:]]
    assert all(sorted(part) == LETTERS for part in parts)
    assert len({tuple(part) for part in [*parts, LETTERS]}) == 4


def test_without_shuffling_every_repetition_keeps_the_files_order(tmp_path):
    convert(options_for(tmp_path, LETTERS, repeats=2, shuffle=False))
    assert documents_of(tmp_path / "out") == LETTERS * 2


def test_the_seed_decides_the_order(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert(
            options_for(tmp_path, LETTERS, prefix=str(tmp_path / name), seed=seed, validation=0.3)
        )
    assert (
        documents_of(tmp_path / "a") == documents_of(tmp_path / "b") != documents_of(tmp_path / "c")
    )
    assert documents_of(tmp_path / "a_val") == documents_of(tmp_path / "b_val")
    assert documents_of(tmp_path / "a_val") != documents_of(tmp_path / "c_val")


def test_orders_are_permutations_that_favour_no_place():
    orders = np.array([random_order(5, seed, 1) for seed in range(4000)])
    assert (np.sort(orders) == np.arange(5)).all()
    counts = np.array([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    # 800 expected, standard deviation 25: five of them.
    assert (abs(counts - 800) < 125).all(), counts


@pytest.mark.parametrize(("share", "held_out"), [(0.25, 6), (0.001, 1), (0.999, 25), (0.5, 13)])
def test_held_out_documents_are_in_no_repetition_of_the_training_data(share, held_out, tmp_path):
    convert(options_for(tmp_path, LETTERS, repeats=2, validation=share))
    train, val = documents_of(tmp_path / "out"), documents_of(tmp_path / "out_val")
    assert len(val) == held_out
    assert val == sorted(val)
    assert sorted(train) == sorted(2 * [letter for letter in LETTERS if letter not in val])
    assert read_manifest(tmp_path / "out_val").documents == held_out


def test_empty_and_odd_texts_are_documents_too(tmp_path):
    texts = ["", "\x00", "a", ""]
    convert(options_for(tmp_path, texts, shuffle=False))
    assert documents_of(tmp_path / "out") == texts


def test_ids_beyond_uint16_are_stored_as_int32(tmp_path):
    words = {"<pad>": 65536, "high": 70000, "low": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.save(str(tmp_path / "t.json"))
    convert(
        options_for(tmp_path, ["high", "low"], tokenizer=str(tmp_path / "t.json"), shuffle=False)
    )
    pair = Binidx(tmp_path / "out")
    assert (pair.dtype.name, pair.get(0, 4).tolist()) == ("int32", [70000, 0, 1, 0])
    assert read_manifest(tmp_path / "out").vocab_size == 70001


def test_a_text_that_does_not_decode_to_itself_is_refused_with_its_line(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"good": 1, "unknown": 2}, unk_token="unknown"))
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(DataError, match=r"in\.jsonl, line 2: decoding .* does not give the text"):
        convert(options_for(tmp_path, ["good", "bad"], tokenizer=str(tmp_path / "t.json")))
    assert outputs(tmp_path) == ["t.json"]


def test_texts_changed_by_the_tokenizers_own_normalization_are_counted(tmp_path):
    words = {"caf\u00e9": 1, "plain": 2, "?": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    texts = ["cafe\u0301", "plain", "caf\u00e9"]
    made = convert(options_for(tmp_path, texts, tokenizer=str(tmp_path / "t.json"), shuffle=False))
    assert made.normalized == 1
    assert Binidx(tmp_path / "out").get(0, 6).tolist() == [1, 0, 2, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, "REPEATS is 0"),
        ({"validation": 1.0}, r"--validation 1\.0"),
        ({"validation": -0.1}, r"--validation -0\.1"),
        ({"seed": -1}, "--seed -1"),
        ({"tokenizer": "wordl"}, "--tokenizer wordl"),
        ({"text_key": "content"}, "line 1: there is no key 'content'"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(changes, message, tmp_path):
    with pytest.raises(DataError, match=message):
        convert(options_for(tmp_path, LETTERS, **changes))
    assert outputs(tmp_path) == []


def test_one_document_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="one document; --validation needs at least two"):
        convert(options_for(tmp_path, ["a"], validation=0.5))


def test_the_same_conversion_again_leaves_the_data_as_it_is(tmp_path):
    wanted = options_for(tmp_path, LETTERS, validation=0.1)
    first = convert(wanted)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = convert(wanted)
    assert (first.reused, again.reused) == (False, True)
    assert again.manifests == first.manifests
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 9}, "seed"),
        ({"repeats": 2}, "repeats"),
        ({"shuffle": False}, "shuffle"),
        ({"tokenizer": "world"}, "tokenizer"),
        ({"validation": 0.5}, "validation"),
    ],
)
def test_data_made_with_other_options_is_not_replaced_unless_asked(changes, difference, tmp_path):
    convert(options_for(tmp_path, LETTERS))
    before = (tmp_path / "out.bin").read_bytes()
    with pytest.raises(DataError, match=rf"out\.bin exists .*different: {difference}\).*overwrite"):
        convert(options_for(tmp_path, LETTERS, **changes))
    assert (tmp_path / "out.bin").read_bytes() == before
    assert outputs(tmp_path) == ["out.bin", "out.idx", "out.manifest.json"]
    made = convert(options_for(tmp_path, LETTERS, overwrite=True, **changes))
    assert not made.reused
    assert read_manifest(tmp_path / "out").made_from[difference] == changes[difference]


def test_data_made_from_another_input_is_not_replaced(tmp_path):
    convert(options_for(tmp_path, LETTERS))
    with pytest.raises(DataError, match="different: input_sha256"):
        convert(options_for(tmp_path, [*LETTERS, "more"]))


@pytest.mark.parametrize("existing", ["out.bin", "out.idx", "out_val.bin"])
def test_files_of_unknown_origin_are_not_replaced(existing, tmp_path):
    (tmp_path / existing).write_bytes(b"mine")
    with pytest.raises(DataError, match=f"{existing} exists and .* made from is not known"):
        convert(options_for(tmp_path, LETTERS, validation=0.1))
    assert outputs(tmp_path) == [existing]
    assert (tmp_path / existing).read_bytes() == b"mine"


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_our_own_damaged_data_is_made_again(ending, tmp_path):
    wanted = options_for(tmp_path, LETTERS)
    convert(wanted)
    path = tmp_path / f"out.{ending}"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]) if ending == "bin" else sound[:50])
    assert not convert(wanted).reused
    assert path.read_bytes() == sound


def fail_on_call(monkeypatch, owner, name, number, error):
    """Lets the call with that number (from 1) of a function raise instead."""
    original, calls = getattr(owner, name), []

    def counted(*arguments, **keywords):
        calls.append(name)
        if len(calls) == number:
            raise error
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counted)


STEPS = [
    (encode_module, "document_text", 1),
    (encode_module, "document_text", 26),
    (BinidxWriter, "append_documents", 1),
    (BinidxWriter, "append_documents", 2),
    (BinidxWriter, "finish", 2),
    (shards_module, "write_manifest", 1),
    (shards_module, "write_manifest", 2),
    (manifest_module, "write_atomically", 2),
    (BinidxWriter, "rename", 1),
    (BinidxWriter, "rename", 2),
    (BinidxWriter, "rename", 3),
    (BinidxWriter, "rename", 4),
]


@pytest.mark.parametrize(("owner", "name", "number"), STEPS)
def test_an_interruption_anywhere_leaves_nothing_half_made(
    owner, name, number, tmp_path, monkeypatch
):
    wanted = options_for(tmp_path, LETTERS, validation=0.1)
    with monkeypatch.context() as patch:
        fail_on_call(patch, owner, name, number, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            convert(wanted)
    # Before the last rename of all the held-out pair is whole.
    complete = ["out_val.bin", "out_val.idx", "out_val.manifest.json"]
    assert outputs(tmp_path) == (complete if (name, number) == ("rename", 4) else [])
    convert(wanted)
    assert len(documents_of(tmp_path / "out")) == 23


@pytest.mark.parametrize(("owner", "name", "number"), STEPS)
def test_a_kill_anywhere_leaves_only_the_old_or_the_new_data_readable(
    owner, name, number, tmp_path, monkeypatch
):
    old = options_for(tmp_path, LETTERS, validation=0.1, seed=1)
    new = options_for(tmp_path, LETTERS, validation=0.1, seed=2, overwrite=True)
    expected = {}
    for folder, wanted in (("old", old), ("new", new)):
        (tmp_path / folder).mkdir()
        convert(replace(wanted, prefix=str(tmp_path / folder / "out")))
        for prefix in ("out", "out_val"):
            expected[folder, prefix] = documents_of(tmp_path / folder / prefix)
    convert(old)
    with monkeypatch.context() as patch:
        # After a kill nothing cleans up.
        patch.setattr(BinidxWriter, "abort", lambda self: None)
        patch.setattr(shards_module, "_remove_orphan", lambda output: None)
        fail_on_call(patch, owner, name, number, SystemExit(9))
        with pytest.raises(SystemExit):
            convert(new)
    readable = {}
    for prefix in ("out", "out_val"):
        try:
            readable[prefix] = documents_of(tmp_path / prefix)
        except DataError:
            continue
    for folder in ("old", "new"):
        if all(documents_ == expected[folder, p] for p, documents_ in readable.items()):
            break
    else:
        pytest.fail(f"readable: {readable}")
    convert(new)
    assert documents_of(tmp_path / "out") == expected["new", "out"]
    assert documents_of(tmp_path / "out_val") == expected["new", "out_val"]
