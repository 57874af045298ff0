"""A run on machines that fail: what it keeps of its time, and how often it should save."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import global_batch
from rwkv_train.errors import ConfigError
from rwkv_train.planning.cluster.courses import Courses, CourseSimulation
from rwkv_train.planning.cluster.goodput_formula import Interval, best_interval, expected_shares
from rwkv_train.planning.cluster.life_cycle import (
    LifeCycle,
    SaveCost,
    Storage,
    gathered_save,
    sharded_save,
)
from rwkv_train.planning.cluster.node_pool import NodePool, usable_counts
from rwkv_train.planning.plan import Plan


@dataclass(frozen=True)
class ClusterWishes:
    """The machines as the user describes them; times in seconds.

    mttf: of one machine; infinite: none fails.  repair: until a broken one is back; 0: at once.
    least: machines with which the run goes on; None: it waits for all.
    """

    mttf: float
    storage: Storage
    restart: float
    detect: float
    spares: int
    repair: float
    least: int | None
    seed: int


@dataclass(frozen=True)
class IntervalOutcome:
    """A run that saves at an interval: expected by the formula, and simulated.

    name: of the interval, for people.
    """

    name: str
    interval: Interval
    simulated: Courses | None = None


@dataclass(frozen=True)
class Changed:
    """Other machines: the best interval on them, and the goodput at the run's own."""

    name: str
    best: Interval
    own_goodput: float


@dataclass(frozen=True)
class ClusterPlan:
    """The cluster's part of a plan.

    own: at the run's own interval, None where it never saves; best: at the best one, None where
    nothing fails.  near: half of the best interval, and twice.
    down: seconds for which the run waits for a broken machine, after each failure.
    fewer: machines that the batch divides among when one is lost; None: there is none such.
    """

    plan: Plan
    wishes: ClusterWishes
    pool: NodePool
    cycle: LifeCycle
    save: SaveCost
    own: IntervalOutcome | None
    best: IntervalOutcome | None
    near: tuple[IntervalOutcome, ...]
    changed: tuple[Changed, ...]
    down: float
    fewer: int | None

    @property
    def formula_holds(self) -> bool:
        """Tells whether the formula's recovery is the run's: on all machines, after one wait."""
        return self.pool.repair == 0 or (self.pool.spares == 0 and self.pool.working(1) is None)

    def pace(self, outcome: IntervalOutcome) -> float:
        """Returns the share of the undisturbed speed that a run has on average.

        It is the goodput, where all machines compute; with fewer of them steps take longer.
        """
        run = outcome.simulated
        if self.formula_holds or run is None:
            return outcome.interval.goodput
        return run.average("steps") * self.cycle.step / run.average("seconds")

    @property
    def makes_progress(self) -> bool:
        """Tells whether a recovery and a save are likely to end before the next failure."""
        cycle = self.cycle
        needed = cycle.recovery + self.down + cycle.save_pause + cycle.save_write
        return needed < cycle.between_failures

    def seconds(self, outcome: IntervalOutcome) -> float | None:
        """Returns the wall time of the whole run; None without an end, or without progress."""
        cost, pace = self.plan.cost, self.pace(outcome)
        return None if cost is None or pace <= 0 else cost.seconds / pace


def make_cluster_plan(plan: Plan, wishes: ClusterWishes) -> ClusterPlan:
    """Returns how a planned run goes on machines that fail.

    Raises ConfigError where its speed is not known, and for more machines at least than it has.
    """
    config, hardware = plan.config, plan.config.hardware
    nodes = hardware.num_nodes
    if plan.tokens_per_second is None:
        raise ConfigError(
            "--mttf needs the speed of a run: give --card NAME or --rate 165e12, in 16 bits or tf32"
        )
    if wishes.least is not None and wishes.least > nodes:
        raise ConfigError(
            f"--min_nodes {wishes.least} is more than the {nodes} there are; give at most --nodes"
        )
    save = sharded_save(plan.files.state, nodes, hardware.devices, wishes.storage)
    step = plan.tokens_per_step / plan.tokens_per_second
    cycle = _cycle(step, save, wishes, nodes)
    usable = usable_counts(global_batch(config), nodes, hardware.devices, hardware.context_parallel)
    pool = NodePool(nodes, wishes.spares, wishes.repair, wishes.least, usable)
    down = _wait(pool, cycle)
    own_steps = _own_interval(config, step)
    own = None if own_steps is None else _interval(cycle, own_steps, down)
    best = best_interval(cycle)
    best = None if best is None else _interval(cycle, best.steps, down)
    steps = None if plan.tokens is None else math.ceil(plan.tokens / plan.tokens_per_step)
    run = CourseSimulation(cycle, pool, wishes.mttf, wishes.seed, steps)
    return ClusterPlan(
        plan=plan,
        wishes=wishes,
        pool=pool,
        cycle=cycle,
        save=save,
        own=None if own is None else IntervalOutcome("as given", own, run.at(own)),
        best=None if best is None else IntervalOutcome("the best", best, run.at(best)),
        near=() if best is None else tuple(_near(cycle, best, down)),
        changed=tuple(_changed(plan, wishes, cycle, own_steps, down)),
        down=down,
        fewer=next((count for count in reversed(usable) if count < nodes), None),
    )


def _cycle(step: float, save: SaveCost, wishes: ClusterWishes, nodes: int) -> LifeCycle:
    return LifeCycle(
        step=step,
        save_pause=save.pause,
        save_write=save.write,
        detect=wishes.detect,
        restart=wishes.restart,
        reload=save.reload,
        between_failures=wishes.mttf / nodes,
    )


def _wait(pool: NodePool, cycle: LifeCycle) -> float:
    """Returns the seconds that a run without spares, and not elastic, waits for a machine."""
    waits = pool.spares == 0 and pool.working(1) is None
    return max(0.0, pool.repair - cycle.detect) if waits else 0.0


def _interval(cycle: LifeCycle, steps: int, down: float) -> Interval:
    return Interval(steps, expected_shares(cycle, steps, down))


def _own_interval(config: ResolvedConfig, step: float) -> int | None:
    """Returns the steps between the saves that the run's own flags ask for; None: none."""
    safety, train = config.safety, config.train
    # The state is saved with every mini-epoch's weights too.
    found = [train.epoch_save * train.epoch_steps] if train.epoch_save else []
    if safety.save_every_steps is not None:
        found.append(safety.save_every_steps)
    if safety.save_every_minutes:
        # At the first step that ends after so many minutes.
        found.append(math.ceil(60 * safety.save_every_minutes / step))
    return min(found, default=None)


def _near(cycle: LifeCycle, best: Interval, down: float) -> Iterator[IntervalOutcome]:
    if best.steps > 1:
        yield IntervalOutcome("half of that", _interval(cycle, best.steps // 2, down))
    yield IntervalOutcome("twice that", _interval(cycle, 2 * best.steps, down))


def _changed(
    plan: Plan, wishes: ClusterWishes, cycle: LifeCycle, own: int | None, down: float
) -> Iterator[Changed]:
    """Yields what one change of the machines does, others as they are."""
    hardware, size = plan.config.hardware, plan.files.state
    storage = wishes.storage
    slower = Storage(storage.disk / 2, None if storage.shared is None else storage.shared / 2)
    half = sharded_save(size, hardware.num_nodes, hardware.devices, slower)
    others = {
        "machines fail twice as often": replace(cycle, between_failures=cycle.between_failures / 2),
        "a restart takes twice as long": replace(cycle, restart=2 * cycle.restart),
        "disks and storage half as fast": _with_save(cycle, half),
        "one process writes the whole state": _with_save(cycle, gathered_save(size, storage)),
        "failures noticed after half an hour": replace(cycle, detect=1800.0),
    }
    for name, other in others.items():
        best = best_interval(other)
        if best is not None:
            best = _interval(other, best.steps, down)
            at_own = 0.0 if own is None else _interval(other, own, down).goodput
            yield Changed(name, best, at_own)


def _with_save(cycle: LifeCycle, save: SaveCost) -> LifeCycle:
    return replace(cycle, save_pause=save.pause, save_write=save.write, reload=save.reload)
