"""The training states of a run in all places that it writes to, and what goes back from there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rwkv_train.checkpoint.resume import StateFile, freshness, list_states
from rwkv_train.errors import short_reason


def states_in_all(folder: Path, places: Sequence[Path]) -> tuple[list[StateFile], list[str]]:
    """Lists the states of a project folder and of the places of their copies, as `list_states`.

    Of the same state the one in the folder comes first, then those of the places in their order.
    The texts name places that cannot be read, where a disk does not answer. Raises OSError for the
    folder itself.
    """
    found, faults = list_states(folder), []
    for place in places:
        try:
            found += list_states(place)
        except OSError as error:
            faults.append(f"passed over: {place} cannot be read: {short_reason(error)}")
    # Sorting keeps the order of equals, in reverse too.
    return sorted(found, key=freshness, reverse=True), faults
