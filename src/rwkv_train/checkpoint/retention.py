"""Chooses the training states and numbered weights to keep, and deletes the others."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rwkv_train.checkpoint.names import FINAL, list_checkpoints, merged_path
from rwkv_train.checkpoint.resume import list_states, state_path


@dataclass(frozen=True)
class Retention:
    """The rule of what stays in a project folder.

    last: newest states kept; every: states saved at a multiple of so many steps stay too;
    last_weights: newest numbered weights kept, None: all; epoch_steps: steps per mini-epoch, by
    which weights have their step.
    """

    last: int
    every: int | None
    last_weights: int | None
    epoch_steps: int

    def apply(self, folder: Path, newest: Path) -> list[Path]:
        """Deletes what is neither among the newest nor at a multiple; returns that.

        newest: the state just written. States that are further in the data than it were skipped
        when the run resumed: they neither count nor go, and so with unreadable ones and
        rwkv-final.state.
        """
        deleted = self._states_to_go(folder, newest) + self._weights_to_go(folder)
        for path in deleted:
            # A file too many is no reason to call a good save failed.
            with suppress(OSError):
                path.unlink()
        return deleted

    def _states_to_go(self, folder: Path, newest: Path) -> list[Path]:
        final = state_path(folder / FINAL)
        states = [
            (state, state.position)
            for state in list_states(folder)
            if state.position is not None and state.path != final
        ]
        reached = next((position for state, position in states if state.path == newest), None)
        if reached is None:
            # Without a readable newest state there is nothing to measure the others by.
            return []
        older = [s for s, position in states if s.path != newest and position <= reached]
        # The state just written is one of the `last`.
        return [s.path for s in older[self.last - 1 :] if not self._is_kept(s.step)]

    def _weights_to_go(self, folder: Path) -> list[Path]:
        if self.last_weights is None:
            return []
        numbered = [(epoch, path) for epoch, path in list_checkpoints(folder) if epoch >= 0]
        # The name holds no step: mini-epoch N, counted from 0, ends after (N + 1) epoch_steps.
        old = [
            path
            for epoch, path in numbered[self.last_weights :]
            if not self._is_kept((epoch + 1) * self.epoch_steps)
        ]
        # An adapter is small; the model merged with it is in the .pth.
        return old + [merged_path(path) for path in old]

    def _is_kept(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0
