"""What the tests of the verification share."""

from __future__ import annotations

from tests.ops.conftest import one_thread

__all__ = ["one_thread"]
