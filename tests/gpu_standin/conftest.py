"""Leaves these tests out unless they are asked for, and makes their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu_standin import libraries
from tests.gpu_standin.standin_data import make_pair


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Returns True, which leaves a file out, unless `--gpu-standin` is given."""
    return None if config.getoption("--gpu-standin") else True


@pytest.fixture(scope="session", autouse=True)
def standin() -> Iterator[None]:
    """Ends the session with the remedy where the stand-in cannot work."""
    reason = libraries.reason_against()
    if reason is not None:
        pytest.exit(f"error: {reason}", returncode=2)
    libraries.built()
    yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefix of a small pair of bytes, next to its _val pair."""
    return make_pair(tmp_path_factory.mktemp("data"))
