"""The order of samples: the reference's, a permutation, and the same however it is divided."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_train.data.sampling.sampler import SampleNumbers, golden_factor, sample_offset, slot
from tests.helpers import load_json

VECTORS = load_json("sampling")
SMALL_PRIMES = [
    p for p in range(2, 2000) if p % 3 == 2 and all(p % d for d in range(2, int(p**0.5) + 1))
]


def splits(global_batch):
    """Every (micro_bsz, accumulate, world_size) with that product."""
    return [
        (micro, accumulate, global_batch // micro // accumulate)
        for micro in range(1, global_batch + 1)
        for accumulate in range(1, global_batch + 1)
        if global_batch % (micro * accumulate) == 0
    ]


def global_batches(first_step, steps, micro_bsz, accumulate, world_size):
    """Sorted sample numbers of each optimizer step, all ranks together."""
    batches = [[] for _ in range(steps)]
    for rank in range(world_size):
        numbers = SampleNumbers(first_step, steps, micro_bsz, accumulate, rank, world_size)
        for position, n in enumerate(numbers):
            batches[position // (micro_bsz * accumulate)].append(n)
    return [sorted(batch) for batch in batches]


def test_the_golden_factors_are_the_references():
    for prime, factor in VECTORS["golden_factor"].items():
        assert golden_factor(int(prime)) == factor


@pytest.mark.parametrize("case", VECTORS["cases"], ids=range(len(VECTORS["cases"])))
def test_the_offsets_are_the_references(case):
    prime, ctx_len, world_size = case["magic_prime"], case["ctx_len"], case["world_size"]
    start = 1 + 40320 * case["mini_epoch"] + case["rank"]
    offsets = [
        sample_offset(start + i * world_size, prime, ctx_len, case["shift"]) for i in case["idx"]
    ]
    assert offsets == case["offsets"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=range(len(VECTORS["cases"])))
def test_the_sampler_reads_what_the_reference_reads(case):
    micro_bsz, world_size = case["micro_bsz"], case["world_size"]
    steps = 40320 // (micro_bsz * world_size)
    numbers = SampleNumbers(
        case["mini_epoch"] * steps, steps, micro_bsz, 1, case["rank"], world_size
    )
    read = list(numbers)
    offsets = [
        sample_offset(read[i], case["magic_prime"], case["ctx_len"], case["shift"])
        for i in case["idx"]
    ]
    assert offsets == case["offsets"]


def test_a_global_batch_is_the_references_for_every_world_size():
    case = VECTORS["one_global_batch"]
    step = case["mini_epoch"] * 40320 // case["global_batch"] + case["step_in_epoch"]
    for world_size in case["same_for_world_sizes"]:
        micro_bsz = case["global_batch"] // world_size
        (batch,) = global_batches(step, 1, micro_bsz, 1, world_size)
        offsets = sorted(sample_offset(n, case["magic_prime"], case["ctx_len"]) for n in batch)
        assert offsets == case["sorted_offsets"]


@given(prime=st.sampled_from(SMALL_PRIMES), first=st.integers(0, 10**12))
def test_as_many_consecutive_samples_as_the_prime_visit_every_slot_once(prime, first):
    assert sorted(slot(n, prime) for n in range(first, first + prime)) == list(range(prime))


@given(
    prime=st.sampled_from([2926181, 81082817, 1670239709]),
    n=st.integers(1, 10**15),
    ctx_len=st.sampled_from([512, 4096]),
    shift=st.integers(0, 4095),
)
def test_a_slot_is_the_factor_times_the_cube_by_repeated_addition(prime, n, ctx_len, shift):
    product = golden_factor(prime)
    for _ in range(3):
        # Binary multiplication, every sum reduced: no product ever exceeds 64 bits.
        total, addend, bits = 0, product, n % prime
        while bits:
            if bits & 1:
                total = (total + addend) % prime
            addend, bits = 2 * addend % prime, bits >> 1
        product = total
    assert slot(n, prime) == product
    assert sample_offset(n, prime, ctx_len, shift) == product * ctx_len + shift


@pytest.mark.parametrize("global_batch", [1, 11, 16, 24])
def test_every_split_of_a_global_batch_holds_the_same_samples(global_batch):
    expected = [
        list(range(1 + step * global_batch, 1 + (step + 1) * global_batch)) for step in range(7, 10)
    ]
    for micro_bsz, accumulate, world_size in splits(global_batch):
        assert global_batches(7, 3, micro_bsz, accumulate, world_size) == expected


@given(
    global_batch=st.sampled_from([d for d in range(1, 505) if 40320 % d == 0]),
    mini_epoch=st.integers(0, 10**6),
)
def test_batches_that_divide_40320_follow_the_references_formula(global_batch, mini_epoch):
    steps = 40320 // global_batch
    numbers = SampleNumbers(mini_epoch * steps, steps, global_batch, 1, 0, 1)
    assert len(numbers) == 40320
    first = 1 + 40320 * mini_epoch
    assert list(islice(numbers, 50)) == list(range(first, first + min(50, 40320)))


def test_ranks_and_micro_steps_take_their_places_by_the_formula():
    numbers = list(SampleNumbers(5, 2, micro_bsz=3, accumulate=2, rank=1, world_size=4))
    expected = [
        1 + ((step * 2 + micro_step) * 3 + j) * 4 + 1
        for step in (5, 6)
        for micro_step in (0, 1)
        for j in (0, 1, 2)
    ]
    assert numbers == expected


def test_a_resumed_run_reads_what_an_uninterrupted_one_would():
    whole = list(SampleNumbers(0, 10, 3, 2, 1, 2))
    for done in range(11):
        before = list(SampleNumbers(0, done, 3, 2, 1, 2))
        assert before + list(SampleNumbers(done, 10 - done, 3, 2, 1, 2)) == whole


def test_a_run_continued_with_another_world_size_skips_and_repeats_nothing():
    batches = global_batches(0, 4, 6, 1, 2) + global_batches(4, 4, 2, 2, 3)
    assert sorted(n for batch in batches for n in batch) == list(range(1, 97))


def test_a_sampler_of_any_length_yields_its_first_numbers_at_once():
    numbers = SampleNumbers(10**12, 10**12, 7, 1, 0, 1)
    assert len(numbers) == 7 * 10**12
    assert list(islice(numbers, 2)) == [7 * 10**12 + 1, 7 * 10**12 + 2]


def test_steps_can_be_moved_between_two_passes():
    numbers = SampleNumbers(0, 1, 2, 1, 0, 1)
    assert list(numbers) == [1, 2]
    numbers.first_step, numbers.steps = 3, 2
    assert list(numbers) == [7, 8, 9, 10]
