"""Whatever can be trained, saved and resumed on a CPU goes the GPU's host path without a fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rwkv_train.files import remove
from tests.gpu_standin.cells import CARDS, KERNELS, SAMPLES_PER_STEP, SMALL, STEPS
from tests.gpu_standin.standin_data import with_mask
from tests.gpu_standin.standin_runs import Run, train_on
from tests.training.modes import MODES, Mode
from tests.training.runs import loss_steps

# strategy and cards that every way is tried with
PLACES = (("single_device", 1), ("deepspeed_stage_2", 2), ("deepspeed_stage_3", 2))
# Two mini-epochs, also of the way that takes two steps for a sample.
HALVES: Mapping[str, object] = {
    **{"epoch_steps": STEPS // 2, "epoch_save": 1, "precision": "bf16"},
    **{"ctx_len": 16, "exit_tokens": STEPS * SAMPLES_PER_STEP * 16},
}


class Way:
    """Runs of one mode under one strategy, in a folder of their own."""

    def __init__(self, folder: Path, data: Path, base: dict[str, Tensor]) -> None:
        self.folder, self.out = folder, folder / "out"
        self.out.mkdir()
        self._data, self._base = data, base

    def prepare(self, mode: Mode) -> None:
        """Writes what the mode starts from."""
        if mode.prepare is not None:
            mode.prepare(self._base, self.out)
        if mode.first is not None:
            self.train(mode.first)

    def train(self, flags: Mapping[str, object], cards: int = 1, card: str = "H100") -> Run:
        """Trains with these flags in place of the usual ones; fails unless the run does right."""
        values = {"proj_dir": self.out, "data_file": "{data}", "rwkv_version": 7}
        given = {**values, **SMALL, **HALVES, **flags}
        places = {"folder": self.out, "data": self._data, "masked": with_mask(self._data)}
        named = {
            key: value.format(**places) if isinstance(value, str) else value
            for key, value in given.items()
        }
        run = train_on(self.folder, named, cards=cards, card=card)
        assert run.ended.returncode == 0, run.ended.stderr
        assert run.faults == []
        return run

    def resume(self, flags: Mapping[str, object], cards: int) -> None:
        """Takes the run back to its first mini-epoch, and trains on from there."""
        finished = loss_steps(self.out)
        (self.out / "metrics.jsonl").unlink()
        for path in self.out.glob("rwkv-*"):
            if not path.name.startswith(("rwkv-init", "rwkv-0")):
                # A state of several processes is a folder.
                remove(path)
        run = self.train(flags, cards)
        assert "rwkv-0.state" in run.ended.stdout, run.ended.stdout
        assert (self.out / "rwkv-final.pth").exists(), "the resumed run has saved nothing"
        first_steps = flags.get("epoch_steps", HALVES["epoch_steps"])
        assert loss_steps(self.out) == finished[first_steps:]


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a base model in bf16, as published models are."""
    way = Way(tmp_path_factory.mktemp("base"), data, {})
    way.train({"train_stage": 1, "precision": "fp32"})
    weights = torch.load(way.out / "rwkv-init.pth", weights_only=True)
    return {name: value.bfloat16() for name, value in weights.items()}


@pytest.fixture
def way(data: Path, base: dict[str, Tensor], tmp_path: Path) -> Way:
    """An empty place for one way."""
    return Way(tmp_path, data, base)


def placed(strategy: str, cards: int, micro_batches: int = 1) -> dict[str, object]:
    """The flags of a strategy with so many cards."""
    return {"strategy": strategy, "micro_bsz": SAMPLES_PER_STEP // cards // micro_batches}


@pytest.mark.parametrize(("strategy", "cards"), PLACES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.key)
def test_every_way_to_train_saves_and_resumes(way: Way, mode: Mode, strategy: str, cards: int):
    way.prepare(mode)
    micro_batches = mode.flags.get("accumulate_grad_batches", 1)
    flags = {**mode.flags, **placed(strategy, cards, micro_batches)}
    way.train(flags, cards)
    way.resume(flags, cards)


@pytest.mark.parametrize(
    ("strategy", "cards"), [(strategy, n) for strategy, numbers in CARDS.items() for n in numbers]
)
def test_every_strategy_saves_and_resumes(way: Way, strategy: str, cards: int):
    way.train(placed(strategy, cards), cards)
    way.resume(placed(strategy, cards), cards)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_cards_that_share_samples_save_and_resume(way: Way, strategy: str):
    flags = {"strategy": strategy, "micro_bsz": SAMPLES_PER_STEP, "context_parallel": 2}
    way.train(flags, 2)
    way.resume(flags, 2)


def test_ddp_recomputes_accumulates_and_reads_in_chunks(way: Way):
    more = {"grad_cp": 1, "accumulate_grad_batches": 2, "chunk_len": 6}
    flags = {**placed("ddp", 2, 2), **more}
    way.train(flags, 2)
    way.resume(flags, 2)


def test_tf32_trains(way: Way):
    way.train({**placed("single_device", 1), "precision": "tf32"})


def test_weights_stay_fp32_on_request(way: Way):
    flags = {**placed("single_device", 1), "autocast": 1}
    assert "autocast 0" not in way.train(flags, 1).ended.stdout
    # The next start takes the weights of this one into bf16 with masters, as one GPU does.
    way.resume(placed("single_device", 1), 1)


def test_two_cards_are_zero_2_by_themselves(way: Way):
    run = way.train({"micro_bsz": SAMPLES_PER_STEP // 2}, cards=2)
    assert "deepspeed_stage_2" in run.ended.stdout
    assert len(run.logs) == 2


def test_a_card_with_99_kib_of_shared_memory_trains(way: Way):
    run = way.train(placed("single_device", 1), card="RTX3090")
    assert run.kernels(KERNELS["7"]), "the wkv7 kernels do not serve"


def test_a_card_without_bf16_trains_in_fp16(way: Way):
    run = way.train({**placed("single_device", 1), "precision": "fp16"}, card="T4")
    assert "T4" in run.ended.stdout
    assert not run.kernels(KERNELS["7"]), "our kernels are for Ampere and newer"
    assert "run on THE GPU without kernels" in run.ended.stdout


def test_a_card_without_bf16_refuses_it(tmp_path: Path, data: Path):
    flags = {"proj_dir": tmp_path / "out", "data_file": data, "rwkv_version": 7, **SMALL}
    run = train_on(tmp_path, {**flags, "precision": "bf16"}, card="T4")
    assert run.ended.returncode == 2
    assert run.ended.stderr.startswith("error: --precision bf16"), run.ended.stderr
    assert run.ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
