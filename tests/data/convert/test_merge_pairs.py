"""Merging: parts give one machine's bytes, pairs are joined, what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rwkv_train.data.binidx.manifest import read_manifest, write_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.data.convert.merge_pairs import merge_pairs
from rwkv_train.data.convert.pipeline import ConvertOptions, InputShard, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.inspect.examine import verify
from rwkv_train.errors import DataError
from tests.data.corpora import arranged_options, documents_of, write_random_jsonl


def make_parts(wanted, of):
    names = []
    for worker in range(of):
        names += convert(replace(wanted, input_shard=InputShard(worker, of))).manifests
    return names


def test_three_machines_parts_become_one_machines_bytes(tmp_path):
    wanted = arranged_options(tmp_path, shard_tokens=20_000)
    names = make_parts(wanted, 3)
    merge_pairs([names[2], f"{names[0]}.manifest.json", names[1]], str(tmp_path / "merged"))
    convert(wanted)
    shards = read_manifest(tmp_path / "out").shards
    assert len(shards) > 3
    for shard in shards:
        for ending in (".bin", ".idx"):
            merged = tmp_path / f"{shard.name}{ending}".replace("out", "merged")
            assert merged.read_bytes() == (tmp_path / f"{shard.name}{ending}").read_bytes()
    for ending in (".bin", ".idx"):
        merged = (tmp_path / f"merged_val{ending}").read_bytes()
        assert merged == (tmp_path / f"out_val{ending}").read_bytes()


def test_a_machine_without_documents_is_no_obstacle(tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in "abc"))
    wanted = arranged_options(tmp_path, arrangement=Arrangement())
    names = make_parts(wanted, 40)
    assert read_manifest(names[1]).documents == 0
    merge_pairs(names, str(tmp_path / "merged"))
    convert(wanted)
    assert documents_of(tmp_path / "merged") == documents_of(tmp_path / "out")
    assert make_parts(wanted, 40) == names


def test_pairs_and_shards_are_joined_in_the_order_given(tmp_path):
    for name, texts in (("a", ["x", "y"]), ("b", ["z", "xx", "w"])):
        (tmp_path / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
        convert(
            ConvertOptions(
                [str(tmp_path / name)],
                str(tmp_path / f"p{name}"),
                Arrangement(shuffle=False),
                "bytes",
                shard_tokens=4,
            )
        )
    made = merge_pairs([str(tmp_path / "pb"), str(tmp_path / "pa")], str(tmp_path / "joined"))
    assert documents_of(tmp_path / "joined") == ["z", "xx", "w", "x", "y"]
    again = merge_pairs([str(tmp_path / "pb"), str(tmp_path / "pa")], str(tmp_path / "joined"))
    assert again.reused and again.manifests == made.manifests
    with pytest.raises(DataError, match=r"joined\.bin exists .*different: input_sha256"):
        merge_pairs([str(tmp_path / "pa")], str(tmp_path / "joined"))


def test_items_of_one_document_become_one_item(tmp_path):
    with BinidxWriter(tmp_path / "foreign", "uint16") as writer:
        writer.append([5, 6])
        writer.append([7, 0], continues=True)
        writer.append([8, 0])
    (tmp_path / "in").write_text('{"text": "a"}')
    convert(ConvertOptions([str(tmp_path / "in")], str(tmp_path / "own"), tokenizer="bytes"))
    manifest = read_manifest(tmp_path / "own")
    write_manifest(tmp_path / "foreign", replace(manifest, tokens=6, documents=2))
    merge_pairs([str(tmp_path / "foreign"), str(tmp_path / "own")], str(tmp_path / "joined"))
    pair = Binidx(tmp_path / "joined")
    items = [pair.item(i).tolist() for i in range(pair.item_count)]
    assert items == [[5, 6, 7, 0], [8, 0], [98, 0]]


def test_what_does_not_fit_together_is_refused(tmp_path):
    wanted = arranged_options(tmp_path)
    first, second, third = make_parts(wanted, 3)
    convert(wanted)
    other = replace(wanted, prefix=str(tmp_path / "world"), tokenizer="world")
    convert(other)
    seeded = replace(wanted, prefix=str(tmp_path / "seeded"), arrangement=Arrangement(seed=8))
    (strange, *_) = make_parts(seeded, 3)
    for names, message in (
        ([first, third], "the parts of --worker 1 are missing"),
        ([first, second, third, second], "a part is given twice"),
        ([first, strange, third], "not a part of the same run"),
        ([first, second, third, wanted.prefix], "not a part of the same run"),
        ([wanted.prefix, other.prefix], "has tokenizer world but .* has bytes"),
        ([str(tmp_path / "nothing")], "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            merge_pairs(names, str(tmp_path / "merged"))
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize("shard", [InputShard(-1, 3), InputShard(3, 3), InputShard(0, 0)])
def test_a_part_that_cannot_be_is_refused(shard, tmp_path):
    with pytest.raises(DataError, match="counted from 0"):
        convert(arranged_options(tmp_path, input_shard=shard))


def write_foreign(prefix, *items, dtype="uint16"):
    """A pair of another tool: without a manifest."""
    with BinidxWriter(prefix, dtype) as writer:
        for item in items:
            writer.append(item)
    return str(prefix)


def test_a_pair_of_another_tool_is_joined_once_its_tokenizer_is_given(tmp_path):
    write_random_jsonl(tmp_path / "in.jsonl", megabytes=0.01)
    own = arranged_options(tmp_path, arrangement=Arrangement(shuffle=False))
    convert(own)
    foreign = write_foreign(tmp_path / "foreign", [98, 99, 0], [100, 0])
    with pytest.raises(DataError, match=r"foreign\.manifest\.json does not exist.*--tokenizer"):
        merge_pairs([foreign, own.prefix], str(tmp_path / "joined"))
    assert not list(tmp_path.glob("joined*"))
    made = merge_pairs([foreign, own.prefix], str(tmp_path / "joined"), tokenizer="bytes")
    assert made.notes == []
    assert documents_of(tmp_path / "joined") == ["ab", "c", *documents_of(tmp_path / "out")]
    assert "are right" in verify(str(tmp_path / "joined"), "all")
    assert merge_pairs([foreign, own.prefix], str(tmp_path / "joined"), tokenizer="bytes").reused


def test_documents_of_another_tool_that_do_not_end_with_0_are_reported(tmp_path):
    foreign = write_foreign(tmp_path / "foreign", [98, 0], [98, 99], [100, 0], [])
    made = merge_pairs([foreign], str(tmp_path / "joined"), tokenizer="bytes")
    assert made.notes == [
        f"2 of the 4 documents of {foreign} do not end with token 0; they were taken as they are"
    ]
    pair = Binidx(tmp_path / "joined")
    items = [pair.item(i).tolist() for i in range(pair.item_count)]
    assert items == [[98, 0], [98, 99], [100, 0], []]


@pytest.mark.parametrize(
    ("dtype", "last", "tokenizer", "message"),
    [
        ("uint16", 257, "bytes", r"ids from 0 to 257, outside the vocabulary of 257"),
        ("int32", -1, "world", r"ids from -1 to 98, outside"),
        ("int32", 98, "bytes", r"has dtype uint16 but .* has int32"),
        ("uint16", 98, "world", r"has tokenizer bytes but .* has world"),
    ],
)
def test_a_pair_of_another_tool_that_does_not_fit_is_refused(
    dtype, last, tokenizer, message, tmp_path
):
    write_random_jsonl(tmp_path / "in.jsonl", megabytes=0.01)
    own = arranged_options(tmp_path, arrangement=Arrangement(shuffle=False))
    convert(own)
    foreign = write_foreign(tmp_path / "foreign", [98, 0], [last, 0], dtype=dtype)
    with pytest.raises(DataError, match=message):
        merge_pairs([foreign, own.prefix], str(tmp_path / "joined"), tokenizer=tokenizer)
    assert not list(tmp_path.glob("joined*"))
