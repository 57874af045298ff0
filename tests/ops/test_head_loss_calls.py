"""Head and loss as a caller meets them: compiled, checkpointed, and with wrong arguments."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rwkv_train.errors import BackendError
from rwkv_train.ops.head_loss import head_loss, head_token_losses
from rwkv_train.ops.head_loss.reference import head_loss_reference
from tests.helpers import relative_rms
from tests.ops.test_head_loss import MASKS, inputs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_it_compiles_into_one_graph_with_equal_results():
    x, weight, extra, targets = inputs()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def loss(x, weight, extra):
        return head_loss(x, weight, targets, mask=MASKS["weights"], extra_logits=extra, rows=4)

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
    plain = torch.autograd.grad(head_loss(x, weight, targets, rows=3), (x, weight))
    loss = checkpoint(
        lambda x, weight: head_loss(x, weight, targets, rows=3), x, weight, use_reentrant=False
    )
    for gradient, right in zip(torch.autograd.grad(loss, (x, weight)), plain):
        assert torch.equal(gradient, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4)}, r"x has shape \[3, 4\], expected \[B, T, C\]"),
        ({"weight": torch.zeros(9, 5)}, r"weight has shape \[9, 5\], expected \[V, C = 4\]"),
        ({"targets": torch.zeros(2, 3)}, r"targets are torch.float32, expected int64"),
        ({"targets": torch.zeros(3, 2).long()}, r"targets has shape \[3, 2\], expected \[2, 3\]"),
        ({"mask": torch.zeros(6)}, r"mask has shape \[6\], expected \[2, 3\]"),
        ({"extra_logits": torch.zeros(2, 3, 8)}, r"extra_logits has shape .* \[2, 3, 9\]"),
        ({"x": None}, r"x is NoneType, expected a tensor"),
        ({"weight": [1.0]}, r"weight is list, expected a tensor"),
        ({"targets": [[1]]}, r"targets is list, expected a tensor"),
        ({"mask": [1]}, r"mask is list, expected a tensor"),
        ({"targets": torch.full((2, 3), 9)}, r"targets hold 9, expected 0 \.\. 8, .* `mask`"),
        ({"targets": torch.full((2, 3), -100)}, r"targets hold -100, expected 0 \.\. 8"),
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
        "targets": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(BackendError, match=f"head_loss: {message}"):
        head_loss(**(good | changes))


def test_a_token_without_its_row_is_named_without_gradients_too():
    with pytest.raises(BackendError, match=r"targets hold 9, expected 0 \.\. 8"):
        head_token_losses(torch.zeros(1, 1, 4), torch.zeros(9, 4), torch.full((1, 1), 9))
