"""Samples that cannot be spread over processes are refused, with advice."""

from __future__ import annotations

import pytest

from tests.config.resolving import fault, resolved

FOUR = "--accelerator cpu --devices 4 "


@pytest.mark.parametrize(
    ("line", "words"),
    [
        # what divides 4 and is smaller than 3
        (FOUR + "--context_parallel 3", ["multiple of 3", "--context_parallel 2"]),
        (FOUR + "--context_parallel 8", ["multiple of 8", "--context_parallel 4"]),
        ("--accelerator cpu --context_parallel 2", ["multiple of 2", "leave it out"]),
        (
            "--accelerator cpu --devices 1 --num_nodes 3 --context_parallel 2",
            ["multiple of 2", "leave it out"],
        ),
        (FOUR + "--context_parallel 0", ["must be at least 1"]),
        (FOUR + "--context_parallel 4 --ctx_len 3", ["more processes than the 3 tokens"]),
        (
            FOUR + "--context_parallel 4 --chunk_len 1 --bptt_chunks 2",
            ["more processes than the 2 tokens"],
        ),
        # 4 x 100 twice, and 3 tokens
        (
            FOUR + "--context_parallel 4 --ctx_len 803 --chunk_len 100",
            ["leaves 3 of 803 tokens", "--chunk_len 99"],
        ),
        (FOUR + "--context_parallel 2 --rwkv_version 5 --head_qk 8", ["head_qk", "leave"]),
        (FOUR + "--context_parallel 2 --compile 1", ["--compile 1", "leave one out"]),
        (
            "--accelerator cpu --devices 1 --strategy single_device --context_parallel 2",
            ["multiple of 2"],
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(line: str, words: list[str]):
    told = fault(line)
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    "line",
    [
        FOUR + "--context_parallel 4 --ctx_len 4",
        FOUR + "--context_parallel 4 --ctx_len 803 --chunk_len 99",
        FOUR + "--context_parallel 2 --chunk_len 64 --bptt_chunks 2",
        "--accelerator cpu --devices 1 --num_nodes 4 --context_parallel 4",
    ],
)
def test_what_can_be_shared_is_not(line: str):
    resolved(line)
