"""Pieces on a card against the fp64 loop; skips itself where there is none."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.ops.native.custom_ops import CUDA_DTYPES
from tests.helpers import assert_close
from tests.ops.native_cases import OPS
from tests.ops.parity import rounded
from tests.ops.pieces.piece_cases import slow_case
from tests.ops.pieces.split_runs import cut_case, gradient_of, piece_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]
LIMIT = 1e-5


# In bf16 100 tokens of heads of 64 go by chunks, 33 and heads of 32 by scans.
@pytest.mark.parametrize(("time", "size"), [(33, 64), (100, 64), (100, 32)])
@pytest.mark.parametrize("dtype", CUDA_DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_pieces_agree_with_the_loop(op, dtype, time, size):
    case = rounded(slow_case(op, 2, time, 2, size, reset=True), dtype)
    case.reset[1] = False
    (exact,), (rank,) = cut_case(case, (), torch.float64), cut_case(case, (), dtype)
    rank = rank._replace(
        leaves={name: x.detach().cuda() for name, x in rank.leaves.items()},
        gy=rank.gy.cuda(),
        reset=rank.reset.cuda(),
    )
    state = tuple(case.inputs[name] for name in case.state_names)
    moved = tuple(x.float().cuda() for x in state)
    found, expected = piece_of(op, rank, "native"), piece_of(op, exact, "reference")
    one, other = found.carry(None), expected.carry(None)
    gradient = gradient_of(op, rank, moved, "native")
    right = gradient_of(op, exact, state, "reference")
    if op == "wkv4":
        scale = torch.exp(one[2].cpu().double() - other[2])
        one, other = one[1].cpu() * scale, other[1]
        gradient, right = torch.stack(gradient[:2]), torch.stack(right[:2])
    else:
        transitions = found.tensors()[0].cpu(), expected.tensors()[0]
        assert_close("transition", *transitions, LIMIT)
    assert_close("contribution", one.cpu(), other, LIMIT)
    assert_close("gradient", gradient.cpu(), right, LIMIT)
