"""What main process and workers exchange through files: blocks, tokens; and what threads do."""

from __future__ import annotations

import hashlib
import json
import threading

import numpy as np
import pytest

from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.convert.block_buffer import Desk, Placed
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.convert.streams import BackgroundSha256, read_ahead
from rwkv_train.data.convert.token_spool import Spool
from rwkv_train.data.convert.workers import IN_FLIGHT, map_in_order
from rwkv_train.data.text.blocks import BLOCK_BYTES


class Taking:
    """Takes content from a desk, and puts its bytes into a spool as tokens."""

    def __init__(self, desk, spool):
        self.desk, self.spool = desk, spool

    def __call__(self, sent):
        content = self.desk.take(sent)
        tokens = np.frombuffer(content, np.uint8).astype("<u2")
        return self.spool.write(tokens, np.frombuffer(content, np.uint8)), len(tokens)


@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_and_tokens_pass_through_files_unchanged_and_in_order(workers, tmp_path):
    generator = np.random.default_rng(3)
    contents = [generator.bytes(int(n)) for n in generator.integers(0, 5000, 80)]
    desk = Desk(tmp_path, IN_FLIGHT * workers)
    spool = Spool(tmp_path, np.dtype("<u2"), weighted=True)
    sent = (desk.put(content) for content in contents)
    for start, size in map_in_order(Taking(desk, spool), sent, workers):
        spool.add(start, np.array([size], np.int32))
    assert not list(tmp_path.iterdir()), "the files have no names"
    order = generator.permutation(80)
    wanted = b"".join(contents[i] for i in order)
    store = spool.store()
    found = np.concatenate([tokens for tokens, _ in store.read(order)])
    weights = np.concatenate([part for part, _ in spool.weights().read(order)])
    assert found.astype(np.uint8).tobytes() == wanted == weights.tobytes()
    assert spool.tokens == len(wanted) == found.size
    desk.close()
    spool.close()


def test_content_stays_on_the_desk_until_as_much_is_put_as_there_are_places(tmp_path):
    desk = Desk(tmp_path, 3)
    sent = [desk.put(bytes([i]) * (i + 1)) for i in range(3)]
    assert all(isinstance(content, Placed) for content in sent)
    assert [desk.take(content) for content in sent] == [b"\0", b"\1\1", b"\2\2\2"]
    for i in range(3, 6):
        desk.put(bytes([i]) * 9)
        left = [desk.take(content) for content in sent[i - 2 :]]
        assert left == [b"\1\1", b"\2\2\2"][i - 3 :]
    desk.close()


def test_what_does_not_fit_on_the_desk_is_sent_itself(tmp_path):
    desk = Desk(tmp_path, 2)
    long, rows = bytes(4 * BLOCK_BYTES), ["a", "b"]
    assert desk.put(long) is long and desk.put(rows) is rows
    assert desk.take(long) is long and desk.take(rows) is rows
    desk.close()


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


@pytest.mark.parametrize("sizes", [[], [0], [10], [1 << 20, 3, 1 << 19, 0, 1 << 18, 1]])
def test_a_digest_in_the_background_is_that_of_all_content_in_order(sizes):
    parts = [bytes([i]) * size for i, size in enumerate(sizes)]
    digest = BackgroundSha256()
    for part in parts:
        digest.update(part)
    assert digest.hexdigest() == hashlib.sha256(b"".join(parts)).hexdigest()


def test_batches_are_made_one_ahead_in_order_and_no_further():
    made, threads = [], set()

    def batches():
        for i in range(5):
            threads.add(threading.get_ident())
            made.append(i)
            yield i

    ahead = read_ahead(batches())
    assert next(ahead) == 0
    assert list(ahead) == [1, 2, 3, 4] and made == [0, 1, 2, 3, 4]
    assert threading.get_ident() not in threads
    made.clear()
    ahead = read_ahead(batches())
    next(ahead)
    ahead.close()
    assert made in ([0], [0, 1])


def test_a_fault_while_reading_ahead_is_raised_in_its_turn():
    def batches():
        yield 1
        raise OSError("gone")

    ahead = read_ahead(batches())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
