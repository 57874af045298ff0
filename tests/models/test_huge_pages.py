"""Weights in large pages are the same weights."""

from __future__ import annotations

import mmap

import pytest
import torch

from rwkv_train.models.huge_pages import move_to_huge_pages
from tests.models.tiny import random_tokens, tiny_model

PAGE = 2 << 20


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="of Linux alone")
def test_the_matrices_lie_side_by_side_from_the_beginning_of_a_page_on():
    model = tiny_model("5", n_layer=1, n_embd=384, vocab_size=40).requires_grad_(False)
    tokens = random_tokens(1, 3, vocab_size=40)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    places = {name: value.data_ptr() for name, value in model.named_parameters()}
    expected, _ = model(tokens)
    move_to_huge_pages(model)
    matrices = [p for p in model.blocks[0].parameters() if p.dim() == 2]
    addresses = [matrix.data_ptr() for matrix in matrices]
    assert addresses[0] % PAGE == 0
    sizes = [matrix.nbytes for matrix in matrices]
    assert all(a + size == b for a, size, b in zip(addresses, sizes, addresses[1:]))
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
    # Of which a token reads one row, and a head too small for a page.
    assert model.emb.weight.data_ptr() == places["emb.weight"]
    assert model.head.weight.data_ptr() == places["head.weight"]
    assert torch.equal(model(tokens)[0], expected)


def test_a_small_model_stays_where_it_is():
    model = tiny_model("7").requires_grad_(False)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    move_to_huge_pages(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
