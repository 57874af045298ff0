"""The memory that a run will take, of what there is: in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import TrainerError
from rwkv_train.planning.file_sizes import run_files
from rwkv_train.planning.held_parameters import saves_in_parts
from rwkv_train.planning.memory import MemoryPlan, memory_plan, saves_beside_steps
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
        if self.plan is None or self.limit is None:
            return 0.0
        return self._share(self.config, self.plan)

    def certain_share(self) -> float:
        """Returns `share` without copies that are written while training goes on.

        They come with the first save, which a short run does not live to see.
        """
        if self.plan is None or self.limit is None:
            return 0.0
        config = without_copies(self.config)
        return self._share(config, memory_plan(config))

    def may_fit(self) -> bool:
        """Tells whether the run fits, or may fit as far as the plan can tell."""
        return self.certain_share() <= 1 + ERROR

    def fits(self, config: ResolvedConfig, plan: MemoryPlan) -> bool:
        """Tells whether another configuration of this run fits for certain."""
        return self.limit is None or self._share(config, plan) <= 1 - ERROR

    def _share(self, config: ResolvedConfig, plan: MemoryPlan) -> float:
        assert self.limit is not None, "asked for only where there is one"
        needed = bytes_against(config, plan, self.limit, self.processes)
        return needed / max(1, self.limit.free)

    def line(self) -> str:
        """Returns the header's line."""
        if self.plan is None:
            return "not predicted: the tensors of this version are not listed"
        there = "" if self.limit is None else f" of {size_words(self.limit.free)}"
        return f"{self.size()}{there} at the worst moment: {parts_words(self.counted())}"

    def on_host(self) -> int:
        """Returns the bytes that the run's processes here take of the machine's memory, on a CPU.

        0 on a GPU, whose memory they take, and where nothing is predicted or nobody is to ask.
        """
        hardware = self.config.hardware
        if self.plan is None or hardware.accelerator != "cpu" or hardware.skip_memory_check:
            return 0
        config = without_copies(self.config)
        return self.processes * memory_plan(config).total

    def counted(self) -> MemoryPlan:
        """Returns what of the plan counts against the limit."""
        assert self.plan is not None, "asked for only where there is one"
        return _counted(self.config, self.plan, self.limit)

    def size(self) -> str:
        """Returns what each process takes, in words."""
        return f"{size_words(self.counted().total)}{self.each()}"

    def each(self) -> str:
        """Returns in how many processes each takes what is told, "" for one."""
        return f" in each of {self.processes} processes" if self.processes > 1 else ""

    def note(self) -> list[str]:
        """Returns a line for a run that may, or may not, fit."""
        limit = self.limit
        if limit is None or self.share() <= 1 - ERROR:
            return []
        return [
            f"memory may not suffice: {self.size()} are predicted, give or take {ERROR:.0%}, and "
            f"{limit.name} leaves {size_words(limit.free)}; see docs/out_of_memory.md"
        ]

    def smaller(self) -> list[SmallerRun]:
        """Returns the three cheapest changes of flags with which the run fits for certain."""
        return smaller_runs(self.config, self.fits, _go_together)

    def clearly_smaller(self) -> list[SmallerRun]:
        """Returns the three cheapest changes with which it takes a quarter less, whatever fits."""
        assert self.plan is not None, "asked for only where there is one"
        most = 0.75 * self.plan.allocated

        def fits(config: ResolvedConfig, plan: MemoryPlan) -> bool:
            return plan.allocated <= most

        return smaller_runs(self.config, fits, _go_together)

    def words(self, runs: list[SmallerRun]) -> str:
        """Returns changes of flags, with what the run takes then."""
        sizes = (_counted(run.config, run.plan, self.limit).total for run in runs)
        return ", or ".join(f"{run.flags} ({size_words(size)})" for run, size in zip(runs, sizes))


def bytes_against(
    config: ResolvedConfig, plan: MemoryPlan, limit: MemoryLimit, processes: int
) -> int:
    """Returns the bytes of a run that count against a limit; plan: of its first process."""
    first = _counted(config, plan, limit).total
    if not limit.is_shared or processes == 1:
        return first
    if saves_in_parts(config):
        return processes * first
    # The first process alone writes.
    waits = without_copies(config)
    others = _counted(waits, memory_plan(waits), limit).total
    return first + (processes - 1) * others


def _counted(config: ResolvedConfig, plan: MemoryPlan, limit: MemoryLimit | None) -> MemoryPlan:
    """Returns what of a plan counts against a limit."""
    if limit is None or not limit.counts_addresses:
        return plan
    # The addresses of libraries are off such a limit already. A file of weights is outlined in
    # memory that nothing is written to, and that yet has addresses.
    is_written = saves_beside_steps(config.safety, config.train)
    outlines = run_files(config).weights if is_written else 0
    return replace(plan, slack=0, buffers=plan.buffers + outlines)


def without_copies(config: ResolvedConfig) -> ResolvedConfig:
    """Returns the configuration with training waiting for its saves."""
    return with_fields(config, {"save_in_background": False})


def parts_words(plan: MemoryPlan, count: int = 3) -> str:
    """Returns the largest components of a plan, with their sizes."""
    parts = sorted(plan.components().items(), key=lambda part: -part[1])[:count]
    return ", ".join(f"{name.replace('_', ' ')} {size_words(size)}" for name, size in parts if size)


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
