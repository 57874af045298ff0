"""A strategy that leaves processes alone when a rank fails; `Ranks` ends them all.

Lightning would kill the process numbers of all ranks of all machines on its own machine.
"""

from __future__ import annotations

from pytorch_lightning.strategies.ddp import DDPStrategy


class LeavesFaultsAlone(DDPStrategy):
    """Lightning's DDP without its killing, the base of every strategy with several ranks."""

    def reconciliate_processes(self, trace: str) -> None:
        """Does nothing."""

    def _should_run_deadlock_detection(self) -> bool:
        return False
