"""Every way to train, for every version, on one process and cut by ZeRO: README's table.

One process trains without interruption; that run is what all cells of a row are held to. A pair of
processes serves all cells that need two, because starting one takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train
from tests.checkout import ROOT
from tests.training import modes
from tests.training.mode_runs import Runs, assert_as_one_process, assert_resumes_to_the_same_bits
from tests.training.modes import EXCLUDED, MODES, STRATEGIES, VERSIONS, Excluded, Mode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Runs]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = Runs(tmp_path_factory.mktemp("modes"), corpus)
    yield runs
    runs.workers.close()
    torch.set_num_threads(threads)


WITH_DDP = ("pretrain", "muon")
CELLS = [
    pytest.param(mode, version, strategy, id=f"{mode.key}-{version}-{strategy}")
    for mode in MODES
    for version in VERSIONS
    for strategy in (*STRATEGIES, *(["ddp"] if version == "6" and mode.key in WITH_DDP else []))
]


@pytest.mark.parametrize(("mode", "version", "strategy"), CELLS)
def test_cell(runs: Runs, mode: Mode, version: str, strategy: str):
    whole = runs.whole(mode, version)
    run = whole if strategy == "1" else runs.trained(mode, version, strategy, "whole")
    assert_as_one_process(mode, run, whole)
    assert_resumes_to_the_same_bits(run, runs.resumed(mode, version, strategy, run))


@pytest.mark.parametrize("excluded", EXCLUDED, ids=lambda excluded: excluded.name)
def test_what_excludes_each_other_is_refused(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], excluded: Excluded
):
    torch.save(runs.base("6"), tmp_path / "rwkv-init.pth")
    capsys.readouterr()
    assert train.main(runs.argv(tmp_path, "6", {**excluded.flags, "devices": 1})) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1, line
    assert all(word in line for word in excluded.words), line
    assert [path.name for path in tmp_path.iterdir()] == ["rwkv-init.pth"]


def test_the_table_in_the_readme_is_this_list():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert modes.BEGIN in text and modes.END in text
    assert text == modes.with_table(text), "run python -m tests.training.modes"
