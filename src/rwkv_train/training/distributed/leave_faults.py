"""Lightning's strategies of several processes without their handling of ranks that fail."""

from __future__ import annotations

from pytorch_lightning.strategies.ddp import DDPStrategy


class LeavesFaultsAlone(DDPStrategy):
    """Does nothing about a rank that fails: `Ranks` does.

    Lightning would kill the process numbers of all ranks of all machines on its own machine.
    """

    def reconciliate_processes(self, trace: str) -> None:
        """Does nothing."""

    def _should_run_deadlock_detection(self) -> bool:
        return False
