"""Prints the plans of rwkv-plan and of `train.py --plan 1`."""

from __future__ import annotations

import dataclasses
import json

from rwkv_train.config.discovered import DataDiscovered, MachineDiscovered, StartDiscovered
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError
from rwkv_train.planning.cards import Card, find_card
from rwkv_train.planning.choice_text import card_lines, fit_lines
from rwkv_train.planning.cluster.cluster_plan import make_cluster_plan
from rwkv_train.planning.cluster.cluster_record import cluster_values
from rwkv_train.planning.cluster.cluster_text import cluster_lines
from rwkv_train.planning.fit import Fitting, fitting_runs, strategy_names
from rwkv_train.planning.plan import Device, Wishes, make_plan
from rwkv_train.planning.plan_flags import PlanRequest
from rwkv_train.planning.plan_record import plan_values
from rwkv_train.planning.plan_text import hint_lines, plan_lines
from rwkv_train.planning.planned_run import imagined_run, planned_config

_MORE = "rwkv-plan takes the same flags: --card NAME for speed and price, --fit for what would fit."


def print_cards() -> None:
    """Prints the table of cards."""
    print("\n".join(card_lines()))


def print_request(request: PlanRequest) -> None:
    """Prints the plan that a command line of rwkv-plan asks for; raises ConfigError."""
    config, remarks = _imagined(request, request.given)
    plan = make_plan(config, _for(config, request.device), request.wishes)
    found = settings_that_fit(request) if request.fit else None
    cluster = None if request.cluster is None else make_cluster_plan(plan, request.cluster)
    if request.as_json:
        values = plan_values(plan, found, [*request.notices, *remarks])
        if cluster is not None:
            values["cluster"] = cluster_values(cluster)
        print(json.dumps(values, indent=2))
        return
    sections = [[*request.notices, *remarks], plan_lines(plan)]
    if found is not None:
        sections.append(fit_lines(found, request.device, plan.devices))
    if cluster is not None:
        sections.append(cluster_lines(cluster))
    _print([*sections, hint_lines(plan, searched=request.fit)])


def print_run(
    given: RunConfig,
    machine: MachineDiscovered,
    start: StartDiscovered,
    data: DataDiscovered | None,
    notices: list[str],
) -> None:
    """Prints the plan of a command line of train.py; raises ConfigError for what it would refuse.

    machine: as far as it is known without torch; start, data: what was found on disk.
    """
    config, remarks = planned_config(given, machine, start, data)
    card = None if machine.gpu_name is None else find_card(machine.gpu_name)
    on_gpu = config.hardware.accelerator == "gpu"
    device = Device(card, card.memory) if card is not None and on_gpu else Device()
    plan = make_plan(config, device, Wishes())
    _print([[*notices, *remarks], plan_lines(plan), [_MORE]])


def _print(sections: list[list[str]]) -> None:
    print("\n\n".join("\n".join(lines) for lines in sections if lines))


def _imagined(request: PlanRequest, given: RunConfig) -> tuple[ResolvedConfig, list[str]]:
    card = request.device.card
    return imagined_run(
        given, model=request.model, tokens=request.tokens, has_bf16=card is None or card.has_bf16
    )


def _for(config: ResolvedConfig, device: Device) -> Device:
    if config.hardware.accelerator == "gpu" or device.card is None:
        return device
    raise ConfigError(
        "--accelerator cpu with --card or --rate: a CPU's speed is not predicted; leave one out"
    )


def settings_that_fit(request: PlanRequest) -> list[Fitting]:
    """Returns what fits of the runs that a command line leaves open, the best first."""
    given, memory = request.given, request.device.memory
    assert memory is not None, "asked for with the flag"
    config, _ = _imagined(request, given)
    devices = config.hardware.devices * config.hardware.num_nodes
    runs: dict[str, ResolvedConfig] = {}
    for strategy in strategy_names(given, devices, config.hardware.accelerator):
        hardware = dataclasses.replace(given.hardware, strategy=strategy)
        # Muon and 8-bit Adam do not go with every strategy.
        try:
            runs[strategy] = _imagined(request, dataclasses.replace(given, hardware=hardware))[0]
        except ConfigError:
            continue
    return fitting_runs(given, runs, request.device.card or _any_card(), memory)


def _any_card() -> Card:
    """Returns a card for the order of runs where none was named."""
    card = find_card("4090")
    assert card is not None, "a row of the table"
    return card
