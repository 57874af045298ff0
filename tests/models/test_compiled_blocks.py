"""Blocks through torch.compile: the same numbers in every kind of call, the first of a process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rwkv_train.config.schema import AdapterConfig
from rwkv_train.models.adapters import attach_adapters
from rwkv_train.models.compiled_blocks import as_written, compile_blocks
from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import random_tokens, tiny_model
from tests.training.runs import start

TOKENS = random_tokens(2, 22)
STARTS = torch.zeros(2, 21, dtype=torch.bool)
STARTS[0, 7] = STARTS[1, 0] = STARTS[1, 20] = True
# Three pieces, the last of another length.
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "pieces": {"chunk_len": 8, "grad_cp": True}}


def test_a_model_of_every_version_is_compiled_as_the_first_call_of_a_process():
    ended = start("tests.models.compile_first")
    assert ended.returncode == 0, ended.stderr


def gradients(model, reset: Tensor | None) -> list[Tensor]:
    """The loss of a step, the state after it and all gradients."""
    targets = Targets(TOKENS[:, 1:])
    loss, state = model.loss_and_state(TOKENS[:, :-1], targets, reset=reset)
    (loss + state[-1].wkv[0].sum()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), state[0].att_shift.detach(), *grads]


# The others differ in what the test above compiles.
@pytest.mark.parametrize("version", ["4", "7"])
def test_compiled_blocks_give_what_the_blocks_give(version):
    torch.compiler.reset()
    counters.clear()
    for name, options in OPTIONS.items():
        compiled, plain = (tiny_model(version, options=options).train() for _ in range(2))
        if name == "plain":
            for model in (compiled, plain):
                attach_adapters(model, AdapterConfig(lora_r=2), (), seed=0)
        names = list(plain.state_dict())
        compile_blocks(compiled, "eager")
        assert list(compiled.state_dict()) == names
        reset = STARTS if name == "plain" else None
        torch.testing.assert_close(
            gradients(compiled, reset), gradients(plain, reset), rtol=1e-5, atol=1e-6
        )
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]


def test_validation_of_another_length_compiles_nothing():
    torch.compiler.reset()
    counters.clear()
    compiled, plain = tiny_model("7"), tiny_model("7")
    compile_blocks(compiled, "eager")
    with torch.no_grad(), as_written(compiled):
        assert torch.equal(compiled(TOKENS)[0], plain(TOKENS)[0])
    assert counters["stats"]["unique_graphs"] == 0
    with torch.no_grad(), as_written(plain):
        assert torch.equal(plain(TOKENS)[0], compiled(TOKENS)[0])
    assert counters["stats"]["unique_graphs"] > 0
