"""The states of beginnings: found by their tokens alone, few, and the least used ones leave."""

from __future__ import annotations

import pytest

from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.writing_together import ReadSequence
from rwkv_train.serving.batching.prefix_cache import SHORTEST_SHARED, PrefixCache
from tests.helpers import assert_close
from tests.models.tiny import tiny_model


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model("7", n_embd=32))


def read(engine: Engine, tokens: list[int]) -> ReadSequence:
    logits, (state,) = engine.prefill([tokens])
    return ReadSequence(state, logits[0])


def test_the_longest_beginning_is_found_and_no_other_text(engine: Engine):
    cache = PrefixCache(1 << 20)
    for tokens in ([1], [1, 2, 3], [1, 2, 3, 4, 5], [2, 2]):
        cache.keep(tokens, read(engine, tokens))
    found = cache.find([1, 2, 3, 4, 9])
    assert found.length == 3
    assert_close("logits", found.sequence.logits, read(engine, [1, 2, 3]).logits, 1e-5)
    assert cache.find([1, 2, 3, 4, 5]).length == 5
    assert cache.find([3, 1]).sequence is None
    assert (cache.hits, cache.misses) == (2, 1)


def test_what_two_texts_share_is_told_so_that_a_third_may_begin_there(engine: Engine):
    cache = PrefixCache(1 << 20)
    shared = [1 + n % 40 for n in range(SHORTEST_SHARED)]
    cache.keep([*shared, 7], read(engine, [*shared, 7]))
    assert cache.find([*shared, 8, 8]) == (0, None, SHORTEST_SHARED)
    assert cache.find([*shared[:-1], 41, 8]).shared == 0
    cache.keep(shared, read(engine, shared))
    known = cache.find([*shared, 9])
    assert (known.length, known.shared) == (SHORTEST_SHARED, 0)


def test_the_least_recently_used_leaves_when_there_is_no_room(engine: Engine):
    cache = PrefixCache(1 << 20)
    cache.keep([1], read(engine, [1]))
    one = cache.size
    cache = PrefixCache(3 * one)
    for token in (1, 2, 3):
        cache.keep([token], read(engine, [token]))
    assert len(cache) == 3 and cache.size == 3 * one
    cache.find([1, 5])
    cache.keep([4], read(engine, [4]))
    assert [cache.find([token]).length for token in (1, 2, 3, 4)] == [1, 0, 1, 1]
    assert cache.size == 3 * one
    nothing = PrefixCache(0)
    nothing.keep([1], read(engine, [1]))
    assert len(nothing) == 0


def test_what_is_kept_holds_no_batch_in_memory(engine: Engine):
    cache = PrefixCache(1 << 20)
    logits, states = engine.prefill([[1], [2], [3]])
    cache.keep([2], ReadSequence(states[1], logits[1]))
    kept = cache.find([2]).sequence
    assert len(kept.state.block[0].att_shift) == 1
    assert kept.logits.untyped_storage().nbytes() == kept.logits.numel() * 4
