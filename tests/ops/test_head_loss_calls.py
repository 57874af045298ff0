"""Head and loss as a caller meets them: compiled, checkpointed, and with wrong arguments."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.head_loss import Targets, head_token_losses
from rwkv_train.ops.head_loss.reference import head_loss_reference
from tests.helpers import relative_rms
from tests.ops.test_head_loss import MASKS, inputs, loss_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_compiles_into_one_graph_with_equal_results():
    x, weight, extra, targets = inputs()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x, weight, extra):
        return loss_of(x, weight, targets, mask=MASKS["weights"], extra_logits=extra, rows=4)

    expected = head_loss_reference(x, weight, targets, mask=MASKS["weights"], extra_logits=extra)
    actual = loss(x, weight, extra)
    assert relative_rms(actual, expected) < 1e-12
    leaves = (x, weight, extra)
    for gradient, right in zip(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves)
    ):
        assert relative_rms(gradient, right) < 1e-12


def test_activation_checkpointing_changes_no_gradient():
    x, weight, _, targets = inputs()
    plain = torch.autograd.grad(loss_of(x, weight, targets, rows=3), (x, weight))
    loss = checkpoint(
        lambda x, weight: loss_of(x, weight, targets, rows=3), x, weight, use_reentrant=False
    )
    for gradient, right in zip(torch.autograd.grad(loss, (x, weight)), plain):
        assert torch.equal(gradient, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4)}, r"x has shape \[3, 4\], expected \[B, T, C\]"),
        ({"weight": torch.zeros(9, 5)}, r"weight has shape \[9, 5\], expected \[V, C = 4\]"),
        ({"ids": torch.zeros(2, 3)}, r"targets are torch.float32, expected int64"),
        ({"ids": torch.zeros(3, 2).long()}, r"targets has shape \[3, 2\], expected \[2, 3\]"),
        ({"mask": torch.zeros(6)}, r"mask has shape \[6\], expected \[2, 3\]"),
        ({"extra_logits": torch.zeros(2, 3, 8)}, r"extra_logits has shape .* \[2, 3, 9\]"),
        ({"x": None}, r"x is NoneType, expected a tensor"),
        ({"weight": [1.0]}, r"weight is list, expected a tensor"),
        ({"ids": [[1]]}, r"targets is list, expected a tensor"),
        ({"mask": [1]}, r"mask is list, expected a tensor"),
        ({"ids": torch.full((2, 3), 9)}, r"targets hold 9, expected 0 \.\. 8, .* `mask`"),
        ({"ids": torch.full((2, 3), -100)}, r"targets hold -100, expected 0 \.\. 8"),
        ({"rows": 0}, r"rows is 0, expected at least 1"),
        ({"x": torch.zeros(2, 3, 4).half()}, r"x is torch.float16 and weight is torch.float32"),
        ({"x": torch.zeros(2, 3, 4).long()}, r"x has dtype torch.int64, expected one of"),
        ({"mask": torch.zeros(2, 3, device="meta")}, r"mask is on meta, expected cpu"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_given_and_expected(changes, message):
    good = {
        "x": torch.zeros(2, 3, 4),
        "weight": torch.zeros(9, 4),
        "ids": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(BackendError, match=f"head_loss: {message}"):
        loss_of(**(good | changes))


def test_a_token_without_its_row_is_named_without_gradients_too():
    with pytest.raises(BackendError, match=r"targets hold 9, expected 0 \.\. 8"):
        head_token_losses(torch.zeros(1, 1, 4), torch.zeros(9, 4), torch.full((1, 1), 9))


def test_pieces_of_targets_share_the_total_of_the_whole():
    ids = torch.arange(6).view(2, 3)
    mask = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0]])
    piece = Targets(ids, mask, rows=4).with_total().between(slice(1, 3))
    assert piece.ids.tolist() == [[1, 2], [4, 5]]
    assert piece.mask.tolist() == [[0.5, 0.0], [2.0, 0.0]]
    assert (piece.total, piece.rows) == (3.5, 4)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 6.0), ({"mask": torch.zeros(2, 3)}, 1.0), ({"total": 9.0}, 9.0)]
)
def test_a_total_that_is_not_given_is_the_sum_of_the_weights_or_1(given, expected):
    assert Targets(torch.zeros(2, 3).long(), **given).with_total().total == expected
