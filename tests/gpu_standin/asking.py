"""Whether torch asks the stand-in for the number of cards.

torch refuses a card to the copies of a process that has asked, which importing DeepSpeed does.
"""

from __future__ import annotations

import torch

_asks = torch._C._cuda_getDeviceCount


def keep_from_asking() -> None:
    """Tells torch a number in place of the stand-in; for the process that copies are made of."""
    torch._C._cuda_getDeviceCount = lambda: 1


def let_ask() -> None:
    """Gives torch back its own function."""
    torch._C._cuda_getDeviceCount = _asks
