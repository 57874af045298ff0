"""What main process and workers exchange through files: blocks of text, and tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.block_buffer import BlockBuffer, BufferSlot
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.convert.token_spool import Spool
from rwkv_train.data.convert.workers import IN_FLIGHT, map_in_order
from rwkv_train.data.text.blocks import BLOCK_BYTES


class ReadingBlocks:
    """Takes content from a buffer, and puts its bytes into a spool as tokens."""

    def __init__(self, buffer, spool):
        self.buffer, self.spool = buffer, spool

    def __call__(self, sent):
        content = self.buffer.read(sent)
        tokens = np.frombuffer(content, np.uint8).astype("<u2")
        return self.spool.write(tokens, np.frombuffer(content, np.uint8)), len(tokens)


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_and_tokens_pass_through_files_unchanged_and_in_order(workers, tmp_path):
    generator = np.random.default_rng(3)
    contents = [generator.bytes(int(n)) for n in generator.integers(0, 5000, 80)]
    buffer = BlockBuffer(tmp_path, IN_FLIGHT * workers)
    spool = Spool(tmp_path, np.dtype("<u2"), weighted=True)
    sent = (buffer.write(content) for content in contents)
    for start, size in map_in_order(ReadingBlocks(buffer, spool), sent, workers):
        spool.add(start, np.array([size], np.int32))
    assert not list(tmp_path.iterdir()), "the files have no names"
    order = generator.permutation(80)
    wanted = b"".join(contents[i] for i in order)
    store = spool.store()
    found = np.concatenate([tokens for tokens, _ in store.read(order)])
    weights = np.concatenate([part for part, _ in spool.weights().read(order)])
    assert found.astype(np.uint8).tobytes() == wanted == weights.tobytes()
    assert spool.tokens == len(wanted) == found.size
    buffer.close()
    spool.close()


def test_content_stays_in_the_buffer_until_as_much_is_written_as_there_are_slots(tmp_path):
    buffer = BlockBuffer(tmp_path, 3)
    sent = [buffer.write(bytes([i]) * (i + 1)) for i in range(3)]
    assert all(isinstance(content, BufferSlot) for content in sent)
    assert [buffer.read(content) for content in sent] == [b"\0", b"\1\1", b"\2\2\2"]
    for i in range(3, 6):
        buffer.write(bytes([i]) * 9)
        left = [buffer.read(content) for content in sent[i - 2 :]]
        assert left == [b"\1\1", b"\2\2\2"][i - 3 :]
    buffer.close()


def test_what_does_not_fit_into_a_slot_is_sent_itself(tmp_path):
    buffer = BlockBuffer(tmp_path, 2)
    long, rows = bytes(4 * BLOCK_BYTES), ["a", "b"]
    assert buffer.write(long) is long and buffer.write(rows) is rows
    assert buffer.read(long) is long and buffer.read(rows) is rows
    buffer.close()


def test_lines_longer_than_a_block_come_through_between_short_ones(tmp_path):
    texts = [letter * (1 + (i % 3) * BLOCK_BYTES) for i, letter in enumerate("abcdefgh")]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    kept = Arrangement(shuffle=False)
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        convert(ConvertOptions([str(path)], str(out), kept, "bytes", workers=workers))
        pair = Binidx(out)
        items = [pair.item(i) for i in range(pair.item_count)]
        assert [bytes((item[:-1] - 1).astype(np.uint8)).decode() for item in items] == texts
