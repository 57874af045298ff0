"""What a run will take of the memory there is, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import TrainerError
from rwkv_train.planning.memory import MemoryPlan, memory_plan
from rwkv_train.planning.smaller_settings import SmallerRun, smaller_runs, with_fields
from rwkv_train.training.start.memory_limits import MemoryLimit

# The plan's error stays below a tenth: benchmarks/RESULTS.md.
ERROR = 0.1


@dataclass(frozen=True)
class MemoryForecast:
    """The plan of a run next to the limit that it comes nearest to.

    plan: None for a version whose tensors are not listed.  limit: None where none is known.
    parameters: of the model.
    """

    config: ResolvedConfig
    plan: MemoryPlan | None
    limit: MemoryLimit | None
    parameters: int

    @property
    def processes(self) -> int:
        """The processes of the run on this machine."""
        # Initial weights are one process's work.
        return 1 if self.config.train.train_stage == 1 else self.config.hardware.devices

    def share(self) -> float:
        """Returns what of the memory there is the run takes; 0 where that is not known."""
        return 0.0 if self.plan is None or self.limit is None else self._share(self.config)

    def certain_share(self) -> float:
        """Returns `share` without copies that are written while training goes on.

        They come with the first save, which a short run does not live to see.
        """
        if self.plan is None or self.limit is None:
            return 0.0
        return self._share(without_copies(self.config))

    def may_fit(self) -> bool:
        """Tells whether the run fits, or may fit as far as the plan can tell."""
        return self.certain_share() <= 1 + ERROR

    def fits(self, config: ResolvedConfig, plan: MemoryPlan) -> bool:
        """Tells whether another configuration of this run fits for certain."""
        return self.limit is None or self._share(config) <= 1 - ERROR

    def _share(self, config: ResolvedConfig) -> float:
        assert self.limit is not None, "asked for only where there is one"
        needed = bytes_against(config, self.limit, self.processes)
        return needed / max(1, self.limit.free)

    def line(self) -> str:
        """Returns the header's line."""
        plan, limit = self.plan, self.limit
        if plan is None:
            return "not predicted: the tensors of this version are not listed"
        there = "" if limit is None else f" of {size_words(limit.free)}"
        return f"{size_words(plan.total)}{self.each()}{there} at the most: {parts_words(plan)}"

    def each(self) -> str:
        """Returns in how many processes each takes what is told, "" for one."""
        return f" in each of {self.processes} processes" if self.processes > 1 else ""

    def note(self) -> list[str]:
        """Returns a line for a run that may, or may not, fit."""
        limit = self.limit
        if limit is None or self.share() <= 1 - ERROR:
            return []
        needed = size_words(bytes_against(self.config, limit, self.processes))
        return [
            f"memory may not suffice: {needed} are predicted, give or take {ERROR:.0%}, and "
            f"{limit.name} leaves {size_words(limit.free)}; see docs/out_of_memory.md"
        ]

    def smaller(self, most: float = 1.0) -> list[SmallerRun]:
        """Returns the three cheapest changes of flags with which the run fits for certain.

        most: and takes no more than this share of what it takes now.
        """
        now = self.plan.total if self.plan is not None else 0

        def fits(config: ResolvedConfig, plan: MemoryPlan) -> bool:
            return plan.total <= most * now and self.fits(config, plan)

        return smaller_runs(self.config, fits, _go_together)


def bytes_against(config: ResolvedConfig, limit: MemoryLimit, processes: int) -> int:
    """Returns the bytes of a run that count against a limit."""

    def size(plan: MemoryPlan) -> int:
        # The addresses of libraries are off the limit already.
        return plan.allocated if limit.counts_addresses else plan.total

    first = size(memory_plan(config))
    if not limit.is_shared or processes == 1:
        return first
    # The first process alone writes.
    return first + (processes - 1) * size(memory_plan(without_copies(config)))


def without_copies(config: ResolvedConfig) -> ResolvedConfig:
    """Returns the configuration with training waiting for its saves."""
    return with_fields(config, {"save_in_background": False})


def parts_words(plan: MemoryPlan, count: int = 3) -> str:
    """Returns the largest components of a plan, with their sizes."""
    parts = sorted(plan.components().items(), key=lambda part: -part[1])[:count]
    return ", ".join(f"{name.replace('_', ' ')} {size_words(size)}" for name, size in parts if size)


def smaller_words(runs: list[SmallerRun]) -> str:
    """Returns changes of flags, with what the run takes then."""
    return ", or ".join(f"{run.flags} ({size_words(run.plan.total)})" for run in runs)


def size_words(size: int) -> str:
    """Returns a number of bytes in GB, or in MB where it is small."""
    return f"{size / 1e9:,.1f} GB" if size >= 95e6 else f"{size / 1e6:,.0f} MB"


def _go_together(config: ResolvedConfig) -> bool:
    """Tells whether the settings of a configuration go together."""
    try:
        check_fields(config.as_given())
    except TrainerError:
        return False
    return True
