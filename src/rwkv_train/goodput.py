"""The wall time of a run by what it was spent on: one vocabulary for runs, plans and simulations.

Every second of a run's life, over all its starts, belongs to exactly one part; so the parts add up
to the wall time, and goodput is the share of it that moved the model forward.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class WallTime:
    """Seconds of a run's life, by part.

    training: steps that the run kept.  lost: steps that were done again, and parts of steps that a
    failure cut off.  restart: from the end of a life to the first step of the next, without the
    reload.  reload: reading the state.  save: pauses of training for a save.  data: waits for the
    loader.  validation: loss on held-out data, and what else a run asks its model.
    down: nobody ran it.
    """

    training: float = 0.0
    lost: float = 0.0
    restart: float = 0.0
    reload: float = 0.0
    save: float = 0.0
    data: float = 0.0
    validation: float = 0.0
    down: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all parts together: the wall time."""
        return sum(self.parts().values())

    @property
    def goodput(self) -> float:
        """The share of the wall time that moved the model forward; 0 where no time has passed."""
        return self.training / self.total if self.total else 0.0

    def parts(self) -> dict[str, float]:
        """Returns the seconds of every part by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def shares(self) -> dict[str, float]:
        """Returns the share of every part of the wall time; zeros where no time has passed."""
        total = self.total or 1.0
        return {name: seconds / total for name, seconds in self.parts().items()}
