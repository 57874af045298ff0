"""Conversations to tokens with a loss mask: the right weights, under every option of make_data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rwkv_train.data.binidx.manifest import read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.chat.encoder import join_segments
from rwkv_train.data.convert.merge_pairs import merge_pairs
from rwkv_train.data.convert.pipeline import ConvertOptions, InputShard, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.inspect.examine import verify
from rwkv_train.data.storage.hashing import file_sha256
from rwkv_train.data.tokenize.bulk_encoder import EncodedTexts
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError
from tests.data.chat.conversations import KEPT, ROWS, WRITTEN, options, written


def test_answers_and_their_ends_are_learnt_and_nothing_else(tmp_path):
    made = convert(options(tmp_path))
    assert written(tmp_path / "out") == WRITTEN
    manifest = made.manifests[str(tmp_path / "out")]
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.sha256_mask == file_sha256(tmp_path / "out.mask")
    # " c\n\n0", "plain0", " r\n\n0", " y\n\n"
    assert manifest.supervised_tokens == 5 + 6 + 5 + 4
    assert (tmp_path / "out.mask").stat().st_size == manifest.tokens


def test_world_tokens_are_those_a_model_meets_and_writes(tmp_path):
    rows = [
        {"prompt": "1+1?\u3002", "response": "\u4f60\u597d\u3002"},
        {"prompt": "Hi", "answer": "Hello world."},
    ]
    convert(options(tmp_path, rows, tokenizer="world"))
    world = load_tokenizer("world")
    pair, mask = Binidx(tmp_path / "out"), np.fromfile(tmp_path / "out.mask", np.uint8)
    at = 0
    for number, (prompt, answer) in enumerate(
        [
            ("User: 1+1?\u3002\n\nAssistant:", " \u4f60\u597d\u3002"),
            ("User: Hi\n\nAssistant:", " Hello world."),
        ]
    ):
        prompt_ids, answer_ids = world.encode(prompt), world.encode(answer)
        # The end is the token 261, "\n\n", also where "\u3002\n" would be a token.
        assert pair.item(number).tolist() == [*prompt_ids, *answer_ids, 261, 0]
        weights = mask[at : at + len(pair.item(number))].tolist()
        assert weights == [0] * len(prompt_ids) + [1] * (len(answer_ids) + 2)
        at += len(weights)


def test_data_without_a_template_has_no_sidecar_and_says_nothing_of_one(tmp_path):
    convert(options(tmp_path, [{"text": "a"}], chat_template=None))
    assert not (tmp_path / "out.mask").exists()
    assert "mask" not in (tmp_path / "out.manifest.json").read_text()
    assert "chat_template" not in (tmp_path / "out.manifest.json").read_text()


def many(count=60):
    return [
        {"prompt": f"{i}" * (i % 7 + 1), "response": f"r{i}" * (i % 5 + 1)} for i in range(count)
    ]


def by_hand(row):
    return f"User: {row['prompt']}\n\nAssistant:[ {row['response']}\n\n0]"


def test_masks_follow_their_documents_through_every_arrangement(tmp_path):
    wanted = Arrangement(repeats=2, seed=5, validation=0.2, dedup=True, max_tokens=45)
    rows = [*many(), *many(20)]
    convert(options(tmp_path, rows, arrangement=wanted, shard_tokens=300))
    assert len(read_manifest(tmp_path / "out").shards) > 5
    # Brackets and the final 0 are no tokens that --max_tokens counts.
    expected = sorted(by_hand(row) for row in many() if len(by_hand(row)) - 3 <= 45)
    train, val = written(tmp_path / "out"), written(tmp_path / "out_val")
    assert len(expected) < 60 and len(val) == round(0.2 * len(expected))
    assert sorted([*train, *val, *val]) == sorted(2 * expected)


def test_any_number_of_workers_and_machines_makes_the_same_bytes(tmp_path):
    wanted = Arrangement(repeats=2, seed=1, validation=0.1)
    # Larger than a block, so that there is work for two.
    rows = [{"prompt": f"{i}", "response": "word " * (i % 50) + "."} for i in range(6000)]
    common = {"arrangement": wanted, "shard_tokens": 500_000}
    convert(options(tmp_path, rows, workers=1, **common))
    two = replace(options(tmp_path, rows, workers=2, **common), prefix=str(tmp_path / "two"))
    convert(two)
    machines = replace(two, prefix=str(tmp_path / "part"), workers=1)
    names = [
        name
        for worker in range(3)
        for name in convert(replace(machines, input_shard=InputShard(worker, 3))).manifests
    ]
    merge_pairs(names, str(tmp_path / "merged"))
    endings = [
        path.name.removeprefix("out")
        for path in tmp_path.glob("out*")
        if not path.name.endswith("json")
    ]
    assert sum(ending.endswith(".mask") for ending in endings) >= 3
    for ending in endings:
        expected = (tmp_path / f"out{ending}").read_bytes()
        for name in ("two", "merged"):
            assert (tmp_path / f"{name}{ending}").read_bytes() == expected, (name, ending)


def test_a_machine_without_documents_is_no_obstacle(tmp_path):
    wanted = options(tmp_path, many(2))
    names = [
        name
        for worker in range(30)
        for name in convert(replace(wanted, input_shard=InputShard(worker, 30))).manifests
    ]
    merge_pairs(names, str(tmp_path / "merged"))
    assert written(tmp_path / "merged") == [by_hand(row) for row in many(2)]


def test_joined_with_data_that_has_no_mask_its_text_is_learnt(tmp_path):
    convert(options(tmp_path))
    plain = options(tmp_path, [{"text": "all"}], chat_template=None, prefix=str(tmp_path / "plain"))
    convert(plain)
    merge_pairs([str(tmp_path / "plain"), str(tmp_path / "out")], str(tmp_path / "both"))
    assert written(tmp_path / "both") == ["[all0]", *WRITTEN]
    assert verify(str(tmp_path / "both"))


def test_bad_rows_are_told_by_file_and_line_or_left_out(tmp_path):
    rows = [ROWS[0], {"messages": [{"role": "wizard", "content": "x"}]}, ROWS[2], {"a": 1}]
    with pytest.raises(DataError, match=r"in\.jsonl, line 2: message 1: the chat template has no"):
        convert(options(tmp_path, rows))
    assert not (tmp_path / "out.bin").exists() and not (tmp_path / "out.mask").exists()
    made = convert(options(tmp_path, rows, on_error="skip"))
    assert made.skipped == 2 and "line 4: neither messages" in made.faults[1]
    assert written(tmp_path / "out") == [WRITTEN[0], WRITTEN[2]]


def test_a_fault_in_one_piece_takes_all_of_its_text():
    encoded = EncodedTexts(
        tokens=np.array([1, 2, 3, 7, 8, 9], np.uint16),
        sizes=np.array([2, 0, 1, 1, 2]),
        text_bytes=np.array([2, 0, 1, 1, 2]),
        faults={1: "broken", 2: "too"},
    )
    joined, weights = join_segments(
        encoded, np.array([1, 2, 2]), np.array([5, 5, 6, 7, 8, 8], np.uint8)
    )
    assert joined.tokens.tolist() == [1, 2, 7, 8, 9] and weights.tolist() == [5, 5, 7, 8, 8]
    assert joined.sizes.tolist() == [2, 0, 3] and joined.text_bytes.tolist() == [2, 0, 3]
    assert joined.faults == {1: "broken"}


def test_a_lone_surrogate_in_an_answer_is_a_fault_of_its_row(tmp_path):
    rows = [ROWS[0], ROWS[2]]
    options(tmp_path, rows)
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"prompt": "a", "response": "\\ud83d"}\n')
    given = ConvertOptions(
        [str(tmp_path / "in.jsonl")],
        str(tmp_path / "out"),
        KEPT,
        "bytes",
        chat_template="world",
        on_error="skip",
    )
    made = convert(given)
    assert made.skipped == 1 and "line 3" in made.faults[0]
    assert written(tmp_path / "out") == [WRITTEN[0], WRITTEN[2]]


def test_rows_of_a_parquet_file_are_read_whole(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "messages": [ROWS[0]["messages"], None, None],
        "prompt": [None, "q", None],
        "response": [None, "r", None],
        "text": [None, None, "plain"],
        "id": [1, 2, 3],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    convert(
        ConvertOptions(
            [str(tmp_path / "in.parquet")],
            str(tmp_path / "out"),
            KEPT,
            "bytes",
            chat_template="world",
        )
    )
    assert written(tmp_path / "out") == [WRITTEN[0], WRITTEN[2], WRITTEN[1]]
