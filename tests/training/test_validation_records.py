"""Records of a validation are those worked out by hand, however it is divided."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rwkv_train.data.samples.batch import Batch
from rwkv_train.data.samples.dataset import ValidationDataset
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.validation_record import bucket_count, make_record
from rwkv_train.training.start.open_data import HeldOutSource
from rwkv_train.training.validation import sums_by_position, validate
from tests.data.samples.token_arrays import Counting
from tests.models.tiny import random_tokens, tiny_model


def test_the_record_is_that_worked_out_by_hand():
    # Two samples of 3 positions: buckets 0-1, 1-2, 2-3. The second target of sample 0 has
    # weight 0, that of sample 1 weight 3.
    sums = np.array([[1.0, 0.0, 4.0], [2.0, 6.0, 5.0]])
    counts = np.array([[1.0, 0.0, 1.0], [1.0, 3.0, 1.0]])
    record = make_record(7, sums, counts, 3, {"a": slice(0, 1), "b": slice(1, 2)}, [2.0, 4.0])
    assert record.loss == pytest.approx(18 / 7) and record.tokens == 7
    assert [(b.name, b.tokens, b.loss) for b in record.by_position] == [
        ("0-1", 2, 1.5),
        ("1-2", 3, 2.0),
        ("2-3", 2, 4.5),
    ]
    mean = sum(b.tokens * b.loss for b in record.by_position) / record.tokens
    assert mean == pytest.approx(record.loss, rel=1e-14)
    assert record.by_source == {"a": 2.5, "b": pytest.approx(13 / 5)}
    # 18 nats are 25.968... bits, over 2 tokens of 2 bytes and 5 of 4
    assert record.bits_per_byte == pytest.approx(18 / math.log(2) / 24)
    assert record.perplexity == pytest.approx(math.exp(18 / 7))
    unknown = make_record(7, sums, counts, 3, {"a": slice(0, 1), "b": slice(1, 2)}, [2.0, None])
    assert unknown.bits_per_byte is None and "val_bits_per_byte" not in unknown.values()


def test_a_model_that_guesses_among_256_bytes_has_eight_bits_per_byte():
    sums, counts = np.full((1, 1), 100 * math.log(256)), np.full((1, 1), 100.0)
    record = make_record(0, sums, counts, 1, {"a": slice(0, 1)}, [1.0])
    assert record.bits_per_byte == pytest.approx(8.0)
    assert record.by_source == {}


@pytest.mark.parametrize(
    ("length", "buckets"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (1024, 11)]
)
def test_buckets_are_powers_of_two(length, buckets):
    # 0 | 1 | 2 3 | 4 ... 7 | ...
    assert bucket_count(length) == buckets == len({p.bit_length() for p in range(length)})


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
@pytest.mark.parametrize("chunk_len", [1, 4, 9, 100])
def test_sums_by_position_are_those_of_all_logits(version, chunk_len):
    model = tiny_model(version)
    tokens, targets = random_tokens(3, 9), random_tokens(3, 9, seed=2)
    mask = torch.arange(27).view(3, 9) % 4 / 2
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[1, 3] = reset[2, 0] = reset[2, 8] = True
    batch = Batch(tokens, targets, mask, reset, ("",) * 3, (0, 1, 2), 0)
    with torch.no_grad():
        found = sums_by_position(model, batch, chunk_len, None)
        logits, _ = model(tokens, reset=reset)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").tolist()
    expected = np.zeros((2, 3, 5))
    for row in range(3):
        start = 0
        for t in range(9):
            start = t if reset[row, t] else start
            bucket, weight = (t - start).bit_length(), float(mask[row, t])
            expected[:, row, bucket] += losses[row][t] * weight, weight
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


class OneOfSeveral:
    """Stands in for Lightning's trainer on one rank; `reduce` adds what earlier ranks gave."""

    def __init__(self, rank: int, ranks: int, earlier: list[torch.Tensor]) -> None:
        self.precision_plugin = SimpleNamespace(val_step_context=contextlib.nullcontext)
        self.global_rank, self.world_size = rank, ranks
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce)
        self.earlier = earlier

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        self.earlier.append(tensor)
        return sum(self.earlier)


def record_of(ranks: int, micro_bsz: int):
    model = tiny_model("6")
    source = Counting(50)
    sources = [
        HeldOutSource("a", ValidationDataset(source, 9, [0, 10, 20, 25, 40]), 1.5),
        HeldOutSource("b", ValidationDataset(source, 9, [3, 33]), 2.5),
    ]
    given: list[torch.Tensor] = []
    for rank in range(ranks):
        record = validate(
            OneOfSeveral(rank, ranks, given),
            model,
            sources,
            3,
            micro_bsz=micro_bsz,
            chunk_len=4,
            head_rows=None,
        )
    return record


def test_any_number_of_processes_finds_the_same_losses_exactly():
    one = record_of(1, 2)
    assert one.tokens == 63 and set(one.by_source) == {"a", "b"}
    for ranks in (2, 3, 5):
        assert record_of(ranks, 2) == one


def test_any_micro_batch_finds_the_same_losses_within_rounding():
    one = record_of(1, 1)
    for micro_bsz in (2, 3, 16):
        assert record_of(1, micro_bsz).loss == pytest.approx(one.loss, rel=1e-6)


def test_the_lowest_loss_is_the_best_until_the_held_out_text_changes():
    progress = Progress()
    assert progress.improves(3.0, "a") and not progress.improves(3.0, "a")
    assert progress.improves(2.0, "a") and not progress.improves(math.nan, "a")
    again = Progress.from_dict({**progress.to_dict(), "weights": {}})
    assert not again.improves(2.5, "a") and again.improves(2.5, "b")
    # states of older versions know of no best
    assert Progress.from_dict({"step": 4}) == Progress(step=4)
