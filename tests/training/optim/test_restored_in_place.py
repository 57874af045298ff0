"""A state in a folder goes into model and optimizer without a second model beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.part_tensors import PartTensors
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.training.optim import optimizer_state
from rwkv_train.training.optim.host_copies import HostCopies
from tests.checkpoint.small_states import save_small_folder, small_state
from tests.training.optim.test_host_copies import trained


def test_no_tensor_is_made_but_those_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, optimizer = trained()
    captured = optimizer_state.capture(model, optimizer, None, copies=HostCopies(keeps=True))
    save_small_folder(tmp_path / "rwkv-0.state", {**small_state(1), **captured}, 3)
    made: list[str] = []
    whole = PartTensors._whole
    monkeypatch.setattr(PartTensors, "_whole", lambda t, name: made.append(name) or whole(t, name))
    state = load_state(tmp_path / "rwkv-0.state")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer.state.clear()
    places = [parameter.data_ptr() for parameter in model.parameters()]
    optimizer_state.restore(state, model, optimizer, None)
    assert not made and not isinstance(state["weights"], dict)
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    again = optimizer_state.capture(model, optimizer, None, copies=HostCopies(keeps=True))
    assert again["optimizer_steps"] == captured["optimizer_steps"] == 1
    groups = [captured["weights"], *captured["moments"].values()]
    found = [again["weights"], *again["moments"].values()]
    assert len(groups) == 3
    for expected, values in zip(groups, found):
        assert all(torch.equal(values[name], value) for name, value in expected.items())
