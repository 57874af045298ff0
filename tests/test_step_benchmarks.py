"""The benchmarks of whole steps: what they count, compare and refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.peer_adapters import AbsentPeerError, Peer, nano_rwkv
from benchmarks.peer_contestants import Contestant, as_torch_multiplies
from benchmarks.peers import same_loss, timed_rounds, timing_of
from benchmarks.step_operators import TrafficMode, plain_operators, shares
from rwkv_train.ops import squared_relu
from rwkv_train.training.profiling.operator_words import (
    ELEMENTWISE,
    FUSED,
    KINDS,
    OPTIMIZER,
    PRODUCTS,
    WKV,
    operator_kind,
)
from rwkv_train.training.whole_step import (
    TimedShape,
    initialized_model,
    own_loss,
    own_optimizer,
    random_batch,
    training_step,
)

SHAPE = TimedShape(layers=2, width=64, vocab=50, ctx_len=16, batch=2)
CPU = torch.device("cpu")
NANO = """
import torch
from dataclasses import dataclass

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.emb = torch.nn.Embedding(config.vocab_size, config.n_embd)
        self.head = torch.nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, tokens, targets):
        logits = self.head(self.emb(tokens))
        # as the original: targets have to be contiguous
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.view(-1))
        return logits, loss
"""


def test_operators_have_their_kind():
    kinds = {
        "aten::addmm": PRODUCTS,
        "aten::mkldnn_linear": PRODUCTS,
        "rwkv::wkv7_backward": WKV,
        "rwkv::squared_relu_forward": FUSED,
        "rwkv::adamw_update": OPTIMIZER,
        "aten::_fused_adamw_": OPTIMIZER,
        "aten::mul": ELEMENTWISE,
        "aten::addcmul_": ELEMENTWISE,
    }
    assert {name: operator_kind(name) for name in kinds} == kinds


def test_bytes_are_counted_once_each_and_views_are_free():
    x, row = torch.ones(4, 8, dtype=torch.bfloat16), torch.ones(8, dtype=torch.bfloat16)
    weight = torch.ones(8, 4, dtype=torch.bfloat16)
    with TrafficMode() as traffic:
        y = x.view(2, 16).view(4, 8) * row.expand(4, 8)  # 64 + 16 + 64
        y.add_(x)  # 64 + 64
        y.t()
        y @ weight  # 64 + 64 + 32
    assert traffic.bytes == {ELEMENTWISE: 144 + 128, PRODUCTS: 160}
    assert traffic.launches == {ELEMENTWISE: 2, PRODUCTS: 1}


def test_without_fused_operators_there_are_more_launches_and_the_same_products():
    def step():
        model = initialized_model("7", SHAPE, CPU)
        batch = random_batch(SHAPE, CPU)
        return training_step(own_loss(model), own_optimizer(model, masters=False), batch, None)

    before = squared_relu.BACKENDS
    fused = shares(step())
    with plain_operators():
        plain = shares(step())
    assert squared_relu.BACKENDS is before and len(before) > 1
    assert set(fused) == set(plain) == set(KINDS)
    assert fused[PRODUCTS][1:] == plain[PRODUCTS][1:] and fused[PRODUCTS].seconds > 0
    assert fused[FUSED].launches > 0 == plain[FUSED].launches
    assert plain[ELEMENTWISE].launches > 2 * fused[ELEMENTWISE].launches


def test_ratios_are_medians_within_a_round():
    names = [Contestant(name, lambda: None, flops, 0) for name, flops in (("GPT", 4), ("mine", 6))]
    # seconds of the GPT, of mine, of a product of 2 FLOPs
    rounds = [[2.0, 1.0, 0.5], [3.0, 4.0, 1.0], [8.0, 2.0, 1.0]]
    found = timing_of(1, names, rounds, SHAPE, 2)
    # 32 tokens in 2 s; 2, 0.75 and 4 times; 3 times the FLOPs at 0.5, 0.25 and 0.5 times the pace
    assert found == ("mine", 16.0, 2.0, None, 1.5)
    assert timing_of(0, names, rounds, SHAPE, 2).times_gpt == 1.0


def test_every_round_begins_with_another():
    called: list[str] = []
    made = [Contestant(n, lambda n=n: called.append(n), 0, 0) for n in "abc"]
    rows = timed_rounds(made, 2, CPU)
    assert "".join(called) == "abc" + "bca" + "cab"
    assert len(rows) == 2 and all(len(row) == 3 for row in rows)


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_peer_of_the_same_function_has_our_loss(
    factor: float, capsys: pytest.CaptureFixture[str]
):
    model = initialized_model("4", SHAPE, CPU)

    def write(folder: Path) -> Path:
        torch.save(model.state_dict(), folder / "model.pth")
        return folder / "model.pth"

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return factor * own_loss(model)(tokens, targets)

    peer = Peer("mine", model, loss, ("emb.weight",), write)
    assert same_loss(peer, SHAPE, CPU, torch.float32) == (factor == 1)
    assert ("ANOTHER FUNCTION" in capsys.readouterr().out) == (factor != 1)


def test_a_peer_can_be_timed_with_the_products_of_torch_among_others(
    monkeypatch: pytest.MonkeyPatch,
):
    precision = ["medium"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision[-1])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precision.append)
    seen: list[str] = []
    given = Contestant("GPT", lambda: seen.append(precision[-1]), 1.0, 2)
    alike = as_torch_multiplies(given)
    alike.step()
    assert seen == ["highest"]
    assert precision[-1] == "medium"
    assert alike.name != given.name and alike[2:] == given[2:]


def test_peers_are_timed_in_turn_and_the_absent_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "model.py").write_text(NANO)
    sizes = [f"--{name}={value}" for name, value in SHAPE._asdict().items()]
    rest = ["--versions=4", "--rounds=1", f"--nano_rwkv={tmp_path}"]
    rest += ["--keep_heap=0", "--products=torch"]
    picture = tmp_path / "peers.png"
    bf16 = ["--precision=bf16", "--weights=bf16", f"--picture={picture}", f"--fla={tmp_path}"]
    assert peers.main([*sizes, *rest, *bf16]) == 0
    out = capsys.readouterr().out
    assert "absent: fla: " in out
    assert "absent: transformers: no folder was given with --transformers" in out
    table = {line.split()[0]: line.split() for line in out.splitlines()[-3:]}
    assert list(table) == ["GPT", "nanoRWKV", "RWKV-4"]
    assert table["GPT"][3] == table["nanoRWKV"][4] == "1.00"
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(("text", "reason"), [(None, "does not exist"), ("import nowhere", "now")])
def test_a_folder_that_holds_something_else_is_told(tmp_path: Path, text: str | None, reason: str):
    if text is not None:
        (tmp_path / "model.py").write_text(text)
    with pytest.raises(AbsentPeerError, match=reason):
        nano_rwkv(tmp_path, SHAPE, CPU)
