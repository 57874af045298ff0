"""Memory that a run needs at the least is worked out, and refused where there is less."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rwkv_train.errors import ConfigError
from rwkv_train.models.registry import build_model
from rwkv_train.training.start import check_memory as module
from rwkv_train.training.start.check_memory import (
    check_memory,
    memory_limit,
    parameter_count,
    run_memory,
)
from tests.config.resolving import resolved

GB = 10**9


def config_of(line):
    return resolved(f"--vocab_size 65536 {line}")[0]


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
@pytest.mark.parametrize("layers", [1, 3, 6])
def test_parameters_are_counted_as_the_model_has_them(version, layers):
    model = config_of(f"--rwkv_version {version} --n_layer {layers} --n_embd 64").model
    with torch.device("meta"):
        built = build_model(model)
    assert parameter_count(model) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize(
    ("line", "bytes_each"),
    [
        # fp32 weights, gradients, two fp32 moments
        ("", (4, 4, 8)),
        ("--precision bf16 --strategy ddp --devices 2", (8, 8, 16)),
        # bf16 weights, fp32 sums of gradients; moments and the fp32 copy, divided by two
        ("--precision bf16 --strategy deepspeed_stage_1 --devices 2", (4, 8, 12)),
        ("--precision bf16 --strategy deepspeed_stage_2 --devices 2", (4, 4, 12)),
        ("--precision bf16 --strategy deepspeed_stage_3 --devices 2", (2, 4, 12)),
        ("--strategy deepspeed_stage_3 --devices 2 --num_nodes 4", (1, 1, 2)),
        ("--optimizer muon", (4, 4, 4)),
        ("--train_stage 1", (4, 0, 0)),
    ],
)
def test_what_is_held_follows_strategy_and_precision(line, bytes_each):
    held = run_memory(config_of(f"--n_layer 2 --n_embd 64 {line}"), 1000)
    assert held == tuple(1000 * size for size in bytes_each)


@pytest.mark.parametrize(
    "line",
    ["--vocab_size 10000000000000000000", "--n_embd 1099511627776", f"--vocab_size {10**18}"],
)
def test_tensors_beyond_64_bits_are_refused_by_their_sizes(line):
    config = config_of(f"--n_layer 1 --n_embd 64 {line}")
    with pytest.raises(ConfigError, match=r"--n_layer 1 --n_embd .* no memory holds tensors"):
        parameter_count(config.model)


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 10**10)
    check_memory(config_of("--n_layer 1 --n_embd 64 --micro_bsz 8"))
    with pytest.raises(
        ConfigError, match=r"--micro_bsz 1099511627776 --ctx_len .* one batch needs"
    ):
        check_memory(config_of("--n_layer 1 --n_embd 64 --micro_bsz 1099511627776"))


def test_the_remedy_is_one_that_helps(monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 10**8)
    refused = {}
    for flags in ("", "--strategy deepspeed_stage_3 --devices 2", "--train_stage 1"):
        with pytest.raises(ConfigError) as refusal:
            check_memory(config_of(f"--n_layer 2 --n_embd 1024 {flags}"))
        refused[flags] = str(refusal.value)
        assert "--vocab_size 65536" in refused[flags]
    whole, divided, stage = refused.values()
    assert whole.endswith("or more GPUs or machines with --strategy deepspeed_stage_3")
    assert divided.endswith("a smaller model or more GPUs or machines")
    assert stage.endswith("take a smaller model")


def test_adapters_need_no_gradients_of_what_they_adapt():
    config = config_of("--n_layer 2 --n_embd 64")
    lora = dataclasses.replace(config.train, train_type="lora")
    assert run_memory(dataclasses.replace(config, train=lora), 1000) == (4000, 0, 0)


def test_a_model_that_is_too_large_is_refused_at_once_with_the_figures(monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 23 * GB)
    with pytest.raises(ConfigError) as caught:
        check_memory(config_of("--n_layer 61 --n_embd 4096"))
    words = str(caught.value)
    assert "--n_layer 61 --n_embd 4096" in words and "this machine has 23.0 GB" in words
    count = parameter_count(config_of("--n_layer 61 --n_embd 4096").model)
    assert f"{16 * count / 1e9:.1f} GB" in words and f"{count / 1e9:.2f} billion" in words
    check_memory(config_of("--n_layer 61 --n_embd 64"))
    monkeypatch.setattr(module, "memory_limit", lambda: None)
    check_memory(config_of("--n_layer 61 --n_embd 4096"))


def machine(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return memory_limit(root)


INFO = "MemTotal:    1000 kB\nMemFree: 1 kB\nSwapTotal:    24 kB\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, 1024 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/memory.max": "7000\n",
            },
            7000,
        ),
        # Inside a container the group has a name of the host, and its files lie at the root.
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": "9000\n"}, 9000),
        (
            {
                "proc/self/cgroup": "3:cpu:/x\n2:memory,hugetlb:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096\n",
            },
            4096,
        ),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": str(2**60)}, 1024 * 1024),
    ],
)
def test_the_limit_is_the_machine_s_or_that_of_a_control_group(files, limit, tmp_path):
    assert machine(tmp_path, {"proc/meminfo": INFO, **files}) == limit
