"""The record of this machine that runs and reports carry."""

from __future__ import annotations

import json
import platform
import socket
from pathlib import Path

import torch

from rwkv_train.machine_record import machine_record


def test_it_names_what_runs_and_on_what():
    record = machine_record()
    assert record["python"] == platform.python_version()
    assert record["packages"]["torch"] == torch.__version__
    assert record["packages"]["pytorch-lightning"] == "1.9.5"
    assert record["processors"] >= 1
    assert record["memory"] > 2**30
    assert len(record["cards"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_it_is_json_and_does_not_tell_who_the_user_is():
    text = json.dumps(machine_record())
    assert str(Path.home()) not in text
    assert socket.gethostname() not in text
