"""Everything that a run costs, put together from its configuration and the cards it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import run_length
from rwkv_train.planning.cards import Card
from rwkv_train.planning.cost import RunCost, speed_at
from rwkv_train.planning.file_sizes import (
    CopySize,
    DataSize,
    RunFiles,
    copy_sizes,
    data_size,
    run_files,
)
from rwkv_train.planning.flops import FlopsPerToken, flops_per_token
from rwkv_train.planning.held_parameters import count_elements
from rwkv_train.planning.host_memory import HostMemory, host_memory
from rwkv_train.planning.memory import MemoryPlan, memory_plan
from rwkv_train.planning.parameter_table import ParameterTable, parameter_table
from rwkv_train.planning.step_time import StepTime, rate_of, step_time

# The memory's prediction errs by less than a tenth: benchmarks/RESULTS.md.
UNCERTAIN = 0.1
# Assumed where documents are counted: their mean length in tokens.
_DOCUMENT_TOKENS = 1000


@dataclass(frozen=True)
class Device:
    """The device that a run is planned for, as far as it is known.

    card: None: no speed is predicted.  memory: bytes of one device; None: nothing to compare with.
    is_assumed: bandwidth and link are not the card's own, which nobody has named.
    """

    card: Card | None = None
    memory: int | None = None
    is_assumed: bool = False

    @property
    def name(self) -> str | None:
        """Name of the card; None without one."""
        return None if self.card is None else self.card.name


class Wishes(NamedTuple):
    """Numbers that the user gives for time and price, None where there are none.

    mfu: share of the card's rate that a run is taken to reach, in place of the predicted one.
    price: of a card and hour.  watts: of a card.
    """

    mfu: float | None = None
    price: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Plan:
    """A run with everything that it takes.

    learnt: parameters that learn, of the model and besides it.  host: of one machine.
    tokens: of the whole run, None without an end; tokens_per_step: of all cards.
    step: None where the speed is not known.
    tokens_per_second: predicted, or by the MFU that was given.
    """

    config: ResolvedConfig
    device: Device
    wishes: Wishes
    parameters: ParameterTable
    learnt: int
    flops: FlopsPerToken
    memory: MemoryPlan
    host: HostMemory
    files: RunFiles
    copies: tuple[CopySize, ...]
    tokens: float | None
    tokens_per_step: int
    data: DataSize | None
    step: StepTime | None
    tokens_per_second: float | None
    cost: RunCost | None

    @property
    def share(self) -> float | None:
        """The share of the device's memory that is taken; None where that is not known."""
        memory = self.device.memory
        return None if memory is None else self.memory.total / memory

    @property
    def devices(self) -> int:
        """Processes of the run, one a device."""
        return self.config.hardware.devices * self.config.hardware.num_nodes


def make_plan(config: ResolvedConfig, device: Device, wishes: Wishes) -> Plan:
    """Returns the plan of a run; raises ConfigError for a version that is not known here."""
    flops = flops_per_token(config)
    length = run_length(config)
    steps = length.total_steps
    tokens = None if steps is None else float(steps * length.tokens_per_step)
    step = None if device.card is None else step_time(config, device.card)
    speed = _speed(config, device, wishes, flops, step)
    devices = config.hardware.devices * config.hardware.num_nodes
    watts = wishes.watts or (device.card.watts if device.card and not device.is_assumed else None)
    cost = None
    if tokens is not None and speed is not None:
        total = tokens * flops.model_flops
        cost = RunCost(tokens, total, speed, devices, wishes.price, watts)
    return Plan(
        config=config,
        device=device,
        wishes=wishes,
        parameters=parameter_table(config.model),
        learnt=count_elements(config).learnt,
        flops=flops,
        memory=memory_plan(config),
        host=host_memory(config),
        files=run_files(config),
        copies=copy_sizes(config),
        tokens=tokens,
        tokens_per_step=length.tokens_per_step,
        data=None if tokens is None else _data(tokens, config),
        step=step,
        tokens_per_second=speed,
        cost=cost,
    )


def _speed(
    config: ResolvedConfig,
    device: Device,
    wishes: Wishes,
    flops: FlopsPerToken,
    step: StepTime | None,
) -> float | None:
    if wishes.mfu is None or device.card is None:
        return None if step is None else step.tokens_per_second
    rate = rate_of(device.card, config.hardware.precision)
    if rate is None:
        return None
    devices = config.hardware.devices * config.hardware.num_nodes
    return speed_at(wishes.mfu, rate, devices, flops.model_flops)


def _data(tokens: float, config: ResolvedConfig) -> DataSize:
    return data_size(tokens, tokens / _DOCUMENT_TOKENS, config.model.vocab_size)
