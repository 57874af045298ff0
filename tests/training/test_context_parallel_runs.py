"""Four processes, of which two or all share every sample, train as one process does.

Runs of every kind in the order in which four workers take them; starting these takes the longest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.resume import list_states, load_state
from tests.training.mode_runs import (
    Runs,
    assert_as_one_process,
    assert_resumes_to_the_same_bits,
    assert_same_way,
)
from tests.training.modes import MODES, Mode
from tests.training.runs import losses

pytestmark = pytest.mark.slow

RANKS = 4
# How many share a sample, and the strategy of all four.
SHARED = {
    "2-ddp": (2, "ddp"),
    "2-Z2": (2, "deepspeed_stage_2"),
    "2-Z3": (2, "deepspeed_stage_3"),
    "4-ddp": (4, "ddp"),
    "4-Z3": (4, "deepspeed_stage_3"),
}
BY_KEY = {mode.key: mode for mode in MODES}
# Pieces of 4 and 5 tokens, of which two in three count.
UNEQUAL = Mode("unequal", "", flags={"data_file": "{masked}", "loss_mask": "on", "ctx_len": 18})
CELLS = [
    (BY_KEY["documents"], "6", "2-Z3"),
    (BY_KEY["windows"], "5", "2-Z2"),
    (BY_KEY["chunks"], "7", "2-Z3"),
    (BY_KEY["recompute"], "6", "2-Z2"),
    (BY_KEY["states"], "4", "2-Z3"),
    (BY_KEY["lora"], "5", "2-ddp"),
    (BY_KEY["muon"], "7", "2-Z2"),
    (UNEQUAL, "4", "4-ddp"),
]
# Those whose second half is trained again from what was saved in the middle.
RESUMED = ("windows", "chunks", "muon")


class SharedRuns(Runs):
    """Runs of four processes in groups that share samples."""

    def share(self, mode: Mode, strategy: str) -> dict[str, object]:
        """The flags of a strategy of SHARED, with four samples a step; those of one process."""
        if strategy == "1":
            return super().share(mode, strategy)
        ranks, name = SHARED[strategy]
        passes = mode.flags.get("accumulate_grad_batches", 1)
        return {
            "devices": RANKS,
            "context_parallel": ranks,
            "strategy": name,
            "micro_bsz": 4 * ranks // RANKS // passes,
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[SharedRuns]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = SharedRuns(tmp_path_factory.mktemp("shared"), corpus, RANKS)
    yield runs
    runs.workers.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("mode", "version", "strategy"), CELLS, ids=[f"{m.key}-{v}-{s}" for m, v, s in CELLS]
)
def test_groups_that_share_samples_train_as_one_process(
    runs: SharedRuns, mode: Mode, version: str, strategy: str
):
    run = runs.trained(mode, version, strategy, "whole")
    assert_as_one_process(mode, run, runs.whole(mode, version))
    if mode.key in RESUMED:
        assert_resumes_to_the_same_bits(run, runs.resumed(mode, version, strategy, run))


def test_a_run_may_go_on_with_other_groups(runs: SharedRuns, capsys: pytest.CaptureFixture[str]):
    # In the middle of rows: the windows' states were carried by all ranks, and saved once.
    mode, version = BY_KEY["windows"], "7"
    whole = runs.whole(mode, version)
    spread = runs.trained(mode, version, "4-ddp", "before")
    assert_as_one_process(mode, spread, whole)
    for strategy, begun in (("1", spread), ("2-Z2", whole)):
        capsys.readouterr()
        resumed = runs.resumed(mode, version, strategy, begun)
        if strategy == "1":
            told = "context_parallel 4 -> 1: the same batches of 4 samples, summed in another order"
            assert told in capsys.readouterr().out
        assert losses(resumed) == pytest.approx(
            {step: loss for step, loss in losses(whole).items() if step in losses(resumed)},
            rel=1e-4,
        )
        assert_same_way(mode, resumed, whole)


def test_ranks_of_a_sample_drop_other_values(runs: SharedRuns):
    mode = Mode("dropout", "", flags={"dropout": 0.5})
    run = runs.trained(mode, "7", "4-ddp", "whole")
    (state, *_) = list_states(run)
    random = [rank["cpu"].numpy().tobytes() for rank in load_state(state.path)["rng"]]
    assert len(set(random)) == RANKS
