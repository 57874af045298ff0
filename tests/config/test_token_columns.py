"""The columns of ranks that share a sample: every token once, every rank at work."""

from __future__ import annotations

import pytest

from rwkv_train.config.run_length import own_window_len, run_length, tokens_per_step
from rwkv_train.config.token_columns import most_tokens, shortest_superchunk, token_columns
from tests.config.resolving import resolved, values


def test_pieces_follow_one_another():
    assert [token_columns(10, 3, rank, None) for rank in range(3)] == [
        ((0, 3),),
        ((3, 6),),
        ((6, 10),),
    ]


def test_superchunks_are_read_by_all_ranks_at_once():
    # 2 ranks of 4 tokens: superchunks of 8, the last one of 3
    assert token_columns(19, 2, 0, 4) == ((0, 4), (8, 12), (16, 17))
    assert token_columns(19, 2, 1, 4) == ((4, 8), (12, 16), (17, 19))
    assert shortest_superchunk(19, 2, 4) == 3
    # 4 + 4 + 2 of the second rank
    assert most_tokens(19, 2, 4) == 10


@pytest.mark.parametrize("length", [7, 64, 65, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk_len", [None, 4, 16])
def test_every_token_is_on_one_rank_and_chunks_end_together(
    length: int, ranks: int, chunk_len: int | None
):
    columns = [token_columns(length, ranks, rank, chunk_len) for rank in range(ranks)]
    tokens = sorted(t for parts in columns for part in parts for t in range(*part))
    assert tokens == list(range(length))
    assert len({len(parts) for parts in columns}) == 1
    if chunk_len is None or shortest_superchunk(length, ranks, chunk_len) < ranks:
        return
    # The model cuts a rank's tokens, one behind the other, every chunk_len.
    for parts in columns:
        sizes = [end - begin for begin, end in parts]
        assert set(sizes[:-1]) <= {chunk_len} and 1 <= sizes[-1] <= chunk_len
    assert max(sum(end - begin for begin, end in parts) for parts in columns) == most_tokens(
        length, ranks, chunk_len
    )


def test_groups_count_as_readers_of_samples():
    # 8 processes in groups of 4 are 2 readers: as 2 processes.
    shared, _ = resolved("--accelerator cpu --devices 8 --context_parallel 4 --micro_bsz 3")
    alone, _ = resolved("--accelerator cpu --devices 2 --micro_bsz 3")
    assert run_length(shared) == run_length(alone)
    assert tokens_per_step(shared) == 2 * 3 * 512
    assert own_window_len(shared) == 128
    # The preparing stage has one process, whatever the groups will be.
    assert values("--train_stage 1 --context_parallel 4", "context_parallel") == 4
