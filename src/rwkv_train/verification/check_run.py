"""Compares a version's tiny run with the stored one, from its first weights to its last.

In the order of the computation, so that the first fault is the cause: initial values, groups and
numbers of the optimizer, rates and decays, losses and gradient norms, what every tensor has learnt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import listed
from rwkv_train.models.parameters import parameter_groups
from rwkv_train.models.registry import build_model
from rwkv_train.ops.backends.dispatch import auto_means
from rwkv_train.processors import processor_name, vendor_and_family
from rwkv_train.training.optim.optimizer import build_optimizer
from rwkv_train.verification.golden_file import (
    number_error,
    projection,
    projection_error,
    stored_parameters,
)
from rwkv_train.verification.golden_run import GoldenRun, run_golden
from rwkv_train.verification.item_names import BITS, RUN
from rwkv_train.verification.outcomes import Outcome, Part
from rwkv_train.verification.speeds import median_speed

# A result may be off by so many times what fp32 was off where the file was made, at its worst of
# several runs: another order of sums errs by about as much, a fault by a thousand times more.
TIMES_ROUNDING = 16.0
# fp32's own, for what does not depend on the run: initial values, rates.
FIRST_BOUND = 1e-6
RATE_BOUND = 1e-12
# Rate factor and decay of what a checkpoint holds and no layer uses: RWKV-7's first value residual.
DOES_NOT_LEARN = [0.0, 0.0]


def check_run(version: str, stored: Mapping[str, Any], accelerator: str = "cpu") -> Part:
    """Returns what was found out about a version's run with this machine's kernels.

    stored: the run of the golden file.  accelerator: "cpu" or "gpu".
    """
    item, who = f"{RUN}{version}", "auto" if accelerator == "cpu" else "auto on the card"
    run = run_golden(version, accelerator=accelerator)
    compared = [*_beginning(item, run, stored), *_curve(item, who, run, stored)]
    return Part(item, tuple(compared), tokens_per_second=median_speed(run.steps))


def check_bits(version: str, stored: Mapping[str, Any]) -> Part:
    """Returns whether the references' run has the stored bits, where they are of such a machine."""
    item = f"{BITS}{version}"
    expected = stored["bits"].get(platform_key())
    if expected is None:
        note = f"{item}: not compared, the stored ones are of another processor or torch"
        return Part(item, (), notes=(note,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with auto_means("reference"):
            found = bits_of(run_golden(version, wkv_backend="reference"))
    finally:
        torch.set_num_threads(threads)
    fault = "" if found == expected else f"{found[:12]} in place of {expected[:12]}"
    return Part(item, (Outcome(item, "reference", "fp32", "losses and weights", "", fault=fault),))


def platform_key() -> str:
    """Returns what decides the bits of torch's own operators on a CPU."""
    capability = torch.backends.cpu.get_cpu_capability()
    # Virtual machines call processors of several generations by one name.
    _, family = vendor_and_family()
    processor = f"{processor_name()} of family {family}"
    return f"torch {torch.__version__}, {processor}, {capability}, 1 thread"


def bits_of(run: GoldenRun) -> str:
    """Returns a digest of a run's losses, gradient norms and last weights."""
    digest = hashlib.sha256()
    for step in run.steps:
        digest.update(f"{step['loss'].hex()} {step['grad_norm'].hex()}\n".encode())
    for name, value in sorted(run.last.items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def group_table(config: ResolvedConfig) -> dict[str, list[float]]:
    """Returns rate factor and weight decay of every parameter, as a run gives them."""
    optim = config.optim
    groups = parameter_groups(
        build_model(config.model),
        weight_decay=optim.weight_decay,
        layerwise_lr=optim.layerwise_lr,
        special_lr_factor=optim.special_lr_factor,
        train_type=config.train.train_type,
        matrices_apart=optim.optimizer == "muon",
        fully=listed(config.adapter.lora_train),
    )
    return {name: [g.lr_factor, g.weight_decay] for g in groups for name in g.names}


def optimizer_numbers(config: ResolvedConfig) -> dict[str, float]:
    """Returns the numbers of the optimizer that a run builds."""
    groups = parameter_groups(build_model(config.model), weight_decay=config.optim.weight_decay)
    defaults = build_optimizer(groups, config.optim, config.hardware).defaults
    beta1, beta2 = defaults["betas"]
    clip = config.optim.grad_clip
    return {"beta1": beta1, "beta2": beta2, "eps": defaults["eps"], "clip": clip}


def _beginning(item: str, run: GoldenRun, stored: Mapping[str, Any]) -> list[Outcome]:
    """Compares what a run starts with, none of which needs a step."""
    findings, expected = [], stored_parameters(stored)
    missing = {*run.first} ^ {*expected}
    fault = f"different: {_in_short(missing)}" if missing else ""
    findings.append(Outcome(item, "trainer", "fp32", "names of parameters", "", fault=fault))
    for name, row in expected.items():
        if name in run.first:
            error = projection_error(run.first[name], row.first)
            result = f"initial value of {name}"
            findings.append(Outcome(item, "trainer", "fp32", result, "", error, FIRST_BOUND))
    groups, numbers = group_table(run.config), optimizer_numbers(run.config)
    right = {name: [row.rate, row.weight_decay] for name, row in expected.items()}
    for number, what in enumerate(("rate factor", "weight decay")):
        wrong = [n for n in right if groups.get(n, DOES_NOT_LEARN)[number] != right[n][number]]
        fault = "" if not wrong else f"wrong of {_in_short(wrong)}"
        findings.append(Outcome(item, "trainer", "fp32", f"groups: {what}", "", fault=fault))
    for name, number in stored["optimizer"].items():
        error = number_error([numbers[name]], [number], abs(number))
        found = Outcome(item, "trainer", "fp32", f"optimizer: {name}", "", error, RATE_BOUND)
        findings.append(found)
    return findings


def _curve(item: str, who: str, run: GoldenRun, stored: Mapping[str, Any]) -> list[Outcome]:
    """Compares the steps, and then what every tensor has learnt."""
    findings = []
    bounds = {"lr": RATE_BOUND, "weight_decay": RATE_BOUND}
    bounds |= {name: TIMES_ROUNDING * r for name, r in stored["rounding"].items()}
    backends = {"lr": "trainer", "weight_decay": "trainer"}
    for name in ("lr", "weight_decay", "loss", "grad_norm"):
        found = [step[name] for step in run.steps]
        if len(found) != len(stored[name]):
            fault = f"{len(found)} steps, expected {len(stored[name])}"
            findings.append(Outcome(item, "trainer", "fp32", name, "", fault=fault))
        for step, (value, expected) in enumerate(zip(found, stored[name])):
            error = number_error([value], [expected], abs(expected))
            about = (item, backends.get(name, who), "fp32", name, f"step {step}")
            findings.append(Outcome(*about, error, bounds[name]))
    for name, row in stored_parameters(stored).items():
        if name not in run.first or name not in run.last:
            continue
        moved = run.last[name].double() - run.first[name].double()
        error = number_error(projection(moved), row.moved, row.moved[1])
        bound = max(TIMES_ROUNDING * row.rounding, FIRST_BOUND)
        findings.append(Outcome(item, who, "fp32", f"learnt: {name}", "", error, bound))
    return findings


def _in_short(names: Iterable[str]) -> str:
    """Returns names with * for the number of a block, each once."""
    short = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in names})
    return ", ".join(short[:4]) + (f" and {len(short) - 4} more" if len(short) > 4 else "")
