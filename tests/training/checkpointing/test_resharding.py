"""A state saved by any number of ranks under any strategy is that of any other."""

from __future__ import annotations

import itertools
from pathlib import Path
from socket import socket

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.training.runs import start_all


def test_every_layout_saves_what_every_layout_loads(tmp_path: Path):
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [[str(tmp_path), str(rank), port] for rank in range(4)]
    program = "tests.training.checkpointing.reshard_worker"
    statuses, out, err = start_all(program, [(given, {}) for given in words])
    assert statuses == [0] * 4 and "->" not in out, out + err
    # What is compared there has been trained, and torch reads it without a word of ours.
    for ranks, stage in itertools.product((1, 2, 3, 4), (0, 1, 2, 3)):
        path = tmp_path / f"rwkv-step-{ranks}{stage}.state"
        assert len([*path.glob("*.distcp")]) == ranks
        dcp_to_torch_save(path, tmp_path / "whole")
        whole = torch.load(tmp_path / "whole", weights_only=True)
        truth = torch.load(tmp_path / f"{ranks}-{stage}.truth", weights_only=True)
        for name, value in truth["weights"].items():
            assert value.abs().max() > 0 and torch.equal(whole["weights"][name], value)
            for key in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(whole["moments"][key][name], truth["moments"][key][name])
