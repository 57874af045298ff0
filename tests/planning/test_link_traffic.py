"""Seconds of collectives, and of what ranks of a sample exchange, against figures by hand."""

from __future__ import annotations

import pytest

from rwkv_train.ops.pieces.message import piece_numbers, state_numbers
from rwkv_train.planning.context_traffic import (
    ContextLinks,
    ContextShape,
    context_links,
    context_seconds,
    exchange_seconds,
)
from rwkv_train.planning.link_traffic import Network
from tests.planning.test_step_time import timed

US = 1e-6
NVLINK = ContextLinks(bandwidth=200e9, start=12 * US, step=3 * US, message=12 * US)
INFINIBAND = ContextLinks(bandwidth=40e9, start=20 * US, step=6 * US, message=20 * US)


def test_a_ring_sends_all_but_one_part_over_the_slower_of_link_and_adapters():
    inside = Network(link=450e9, node=400e9, cards=8, nodes=1)
    # 7 of 8 parts of 10 GB at 450 GB/s; 12 us and 7 steps of 3 us for each of two calls.
    assert inside.gather(10e9, 2) == pytest.approx(8.75e9 / 450e9 + 2 * 33 * US)
    # 63 of 64 parts at the adapters' 400 GB/s; 7 steps between nodes of 6 us, 56 inside.
    eight = inside._replace(nodes=8)
    assert eight.gather(10e9, 1) == pytest.approx(10e9 * 63 / 64 / 400e9 + (20 + 42 + 168) * US)
    assert Network(450e9, 50e9, 1, 2).bandwidth == 50e9
    assert Network(32e9, 400e9, 8, 2).bandwidth == 32e9


def test_an_all_reduce_sends_twice_and_takes_a_tree_where_that_is_sooner():
    network = Network(link=450e9, node=400e9, cards=8, nodes=128)
    # Up and down: 7 steps between 128 nodes, 7 in each.
    tree = (20 + 2 * (7 * 6 + 7 * 3)) * US
    assert network.all_reduce(0, 1) == pytest.approx(tree)
    assert network.all_reduce(1e9, 1) == pytest.approx(2 * 1e9 * 1023 / 1024 / 400e9 + tree)
    # A ring through 1024 cards: 127 steps between, 896 inside; NCCL has no tree for a gather.
    assert network.gather(0, 1) == pytest.approx((20 + 127 * 6 + 896 * 3) * US)


def test_one_card_sends_nothing():
    alone = Network(450e9, 400e9, 1, 1)
    assert alone.gather(1e9, 5) == alone.all_reduce(1e9, 5) == 0


# Section 6 of the derivation: us of all-gather with a fused fold, chain and scan, one sample.
@pytest.mark.parametrize(
    ("width", "links", "ranks", "gather", "chain", "scan"),
    [
        (768, NVLINK, 2, 22, 18, 24),
        (768, INFINIBAND, 16, 262, 449, 159),
        (2048, NVLINK, 8, 75, 137, 82),
        (2048, INFINIBAND, 4, 122, 114, 112),
        (4096, NVLINK, 64, 867, 1401, 195),
        (4096, INFINIBAND, 32, 1836, 1588, 412),
    ],
)
def test_states_of_rwkv_7_are_exchanged_as_fast_as_was_derived(
    width, links, ranks, gather, chain, scan
):
    found = exchange_seconds(ContextShape("7", 1, width, 64), links, ranks)
    assert found == pytest.approx(
        {"gather": gather * US, "chain": chain * US, "scan": scan * US}, abs=0.6 * US
    )


def test_messages_of_the_other_versions_are_as_large_as_was_derived():
    assert ContextShape("6", 1, 2048, 64).message == 2048 * 65 * 4
    assert ContextShape("4", 1, 768, 0).message == (3 * 768 + 1) * 4
    five = exchange_seconds(ContextShape("5", 1, 4096, 64), NVLINK, 8)
    assert five["gather"] == pytest.approx(75 * US, abs=0.6 * US)


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
def test_a_run_sends_the_messages_that_are_planned(version: str):
    shape = ContextShape(version, 2, 768, 0 if version == "4" else 64)
    heads = (768, 1) if version == "4" else (12, 64)
    # Numbers of fp32.
    assert shape.message == 4 * piece_numbers(version, 2, *heads)
    assert shape.state == 4 * state_numbers(version, 2, *heads)


def test_a_layer_waits_for_an_exchange_and_two_borders_each_way():
    shape = ContextShape("7", 1, 768, 64)
    # Eight ranks: 51.8 us, backwards 7 x 0.983 us less without transitions; two borders each way.
    eight = context_seconds(shape, NVLINK, 8)
    assert eight == pytest.approx((51.8 + 44.9 + 4 * 12) * US, rel=1e-3)
    # Fifteen gather too, 14 steps of 3 + 1.97 and of 3 + 0.98 us; sixteen scan in four rounds.
    fifteen = context_seconds(shape, NVLINK, 15)
    assert fifteen == pytest.approx((2 * (12 + 5 + 24) + 14 * (4.966 + 3.983)) * US, rel=1e-3)
    sixteen = context_seconds(shape, NVLINK, 16)
    assert sixteen == pytest.approx(2 * (4 * 23.97 + 24) * US, rel=1e-3)
    assert context_seconds(shape, NVLINK, 1) == 0


def test_ranks_of_a_sample_use_the_links_of_a_node_until_they_leave_it():
    network = Network(link=450e9, node=400e9, cards=8, nodes=2)
    assert context_links(network, 8).bandwidth == 450e9
    # Every card its eighth of the adapters.
    assert context_links(network, 16).bandwidth == 50e9


def test_sharing_a_sample_divides_its_time_and_adds_the_exchange():
    line = "--n_layer 24 --n_embd 2048 --ctx_len 32768 --micro_bsz 1 --strategy ddp --devices 8 "
    apart, shared = timed(line), timed(line + "--context_parallel 8")
    assert shared.tokens == apart.tokens / 8
    assert shared.products == pytest.approx(apart.products / 8)
    # 24 layers; at 450 GB/s 1.05 MB of state and transition a rank, and its half backwards.
    state = 2048 * 64 * 4 / 450e9
    layer = 2 * (12 + 7 * 3 + 5 + 24) * US + 7 * 3 * state
    assert shared.context == pytest.approx(24 * layer) and apart.context == 0
    # In two superchunks of 8 x 2048 tokens states are exchanged twice.
    chunked = timed(line + "--context_parallel 8 --chunk_len 2048")
    assert chunked.context == pytest.approx(2 * shared.context)
    # Three more forward calls of WKV.
    assert apart.wkv / 8 < shared.wkv < apart.wkv / 4


def test_named_adapters_carry_what_goes_between_machines():
    from tests.planning.test_step_time import card, imagined, step_time

    config = imagined(
        "--n_layer 32 --n_embd 4096 --ctx_len 512 --micro_bsz 1 --devices 8 --num_nodes 4"
    )
    fast = step_time(config, card("h100"))
    slow = step_time(config, card("h100")._replace(adapters=25e9))
    assert fast is not None and slow is not None
    # The weights come back after the step: 16 times slower, but for the latency.
    assert slow.links > 10 * fast.links
