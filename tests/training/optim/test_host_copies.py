"""Copies for a save: on the rank that writes and on no other, through a buffer of one size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(7, 5)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([model.weight])
    model(torch.ones(2, 7)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_the_writing_rank_keeps_weights_and_moments_and_the_others_nothing():
    model, optimizer = trained()
    first, other = HostCopies(keeps=True), HostCopies(keeps=False)
    state = optimizer_state.capture(model, optimizer, None, copies=first)
    # fp32: weight and two moments of 35 values, a bias of 5
    assert first.kept_bytes == 4 * (3 * 35 + 5)
    assert state["weights"]["weight"].data_ptr() != model.weight.data_ptr()
    state = optimizer_state.capture(model, optimizer, None, copies=other)
    assert other.kept_bytes == 0 and state["optimizer_steps"] == 1
    assert not state["weights"] and not any(state["moments"].values())


def test_frozen_values_are_handed_on_and_not_copied():
    model, optimizer = trained()
    exact, copies = torch.arange(5.0), HostCopies(keeps=True)
    state = optimizer_state.capture(model, optimizer, None, copies=copies, frozen={"bias": exact})
    assert list(state["weights"]) == ["weight", "bias"]
    assert state["weights"]["bias"] is exact and copies.kept_bytes == 4 * 3 * 35


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (16,), (17,), (3, 50), (0, 4)])
def test_a_copy_in_parts_is_the_whole(shape: tuple[int, ...], dtype: torch.dtype):
    copies = HostCopies(keeps=True, staging_bytes=64)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    copied = torch.empty(shape)
    copies.through_staging(value, copied)
    assert torch.equal(copied, value.float())
    # of a tensor whose values do not lie in their order
    if value.dim() == 2:
        turned = torch.empty(shape[::-1], dtype=dtype)
        copies.through_staging(value.t(), turned)
        assert torch.equal(turned, value.t())


def test_one_buffer_serves_all_copies():
    copies = HostCopies(keeps=True, staging_bytes=64)
    copies.through_staging(torch.ones(100), torch.empty(100))
    buffer = copies._staging
    copies.through_staging(torch.ones(3), torch.empty(3))
    assert copies._staging is buffer and buffer.nbytes == 64
