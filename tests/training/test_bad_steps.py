"""NaN in a batch, in a gradient, in the weights; spikes: skipped without a trace, or gone back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.data.samples.batch import Batch
from rwkv_train.models.state import map_state
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training.inject_nan import parse, poison
from tests.training.runs import assert_same_weights, loss_steps, losses, start

Run = Callable[..., int]
# 8 steps of 4 samples; one mini-epoch, so that only what is asked for is saved between
OPTIONS = {
    "exit_tokens": 1000,
    "epoch_steps": 100,
    "dropout": 0,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "keep_last": 20,
}


@pytest.fixture(autouse=True)
def healthy() -> Iterator[None]:
    """Takes the poison away again, and one thread as in the processes that are started."""
    step, threads = TrainingModule.training_step, torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    TrainingModule.training_step = step
    torch.set_num_threads(threads)


def assert_same_model(one: dict, other: dict) -> None:
    for part in ("weights", "moments"):
        assert one[part] and content_digest(one[part]) == content_digest(other[part]), part
    assert one["optimizer_steps"] == other["optimizer_steps"]


def skipped(folder: Path) -> list[dict]:
    return [record for record in read_metrics(folder) if "skipped" in record]


@pytest.mark.parametrize(
    ("what", "optimizer"), [("loss", "adamw"), ("gradient", "adamw"), ("gradient", "muon")]
)
def test_a_bad_step_changes_neither_weights_nor_moments_nor_adams_count(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, optimizer: str
):
    out = tmp_path / "out"
    poison(what, parse("14-14"))
    # sample 14 is in step 3, the last one here
    options = {**OPTIONS, "optimizer": optimizer}
    assert run_training(save_every_steps=3, max_steps=4, **options) == 0
    before, after = load_state(out / "rwkv-step-3.state"), load_state(out / "rwkv-0.state")
    assert (before["step"], after["step"], after["optimizer_steps"]) == (3, 4, 3)
    assert_same_model(before, after)
    assert loss_steps(out) == [0, 1, 2]
    (record,) = skipped(out)
    assert record["step"] == 3 and record["samples"] == [13, 16] and record["tokens"] == 512
    assert "nan" in record["skipped"]
    assert "step 4 skipped" in capsys.readouterr().out
    assert run_training(**options) == 0
    assert loss_steps(out) == [0, 1, 2, 4, 5, 6, 7]


def test_the_micro_batch_that_is_to_blame_is_named(run_training: Run, tmp_path: Path):
    poison("loss", parse("14-14"))
    assert run_training(micro_bsz=2, accumulate_grad_batches=2, max_steps=4, **OPTIONS) == 0
    (record,) = skipped(tmp_path / "out")
    assert record["samples"] == [13, 16] and record["suspects"] == [13, 14]


def test_a_run_with_a_bad_step_goes_on_as_if_never_interrupted(run_training: Run, tmp_path: Path):
    poison("gradient", parse("14-14"))
    assert run_training(proj_dir=tmp_path / "whole", **OPTIONS) == 0
    for steps in (3, 4, 6, None):
        assert run_training(proj_dir=tmp_path / "parts", max_steps=steps, **OPTIONS) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole/rwkv-final.pth", tmp_path / "parts/rwkv-final.pth")


def test_a_bad_step_ends_the_run_when_asked_to(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    poison("gradient", parse("14-14"))
    assert run_training(on_bad_step="stop", save_every_steps=2, **OPTIONS) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: step 4: ") and "samples 13 to 16" in err
    assert {p.name for p in (tmp_path / "out").glob("rwkv-*")} == {
        "rwkv-init.pth",
        "rwkv-step-2.state",
    }


@pytest.mark.parametrize("pause", [None, 6, 8])
def test_after_bad_steps_in_a_row_the_run_goes_back_and_leaves_the_batches_out(
    run_training: Run, tmp_path: Path, pause: int | None, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    options = {**OPTIONS, "exit_tokens": 12 * 128, "save_every_steps": 4}
    # steps 5, 6 and 7
    poison("loss", parse("21-32"))
    if pause is not None:
        # in the middle of the bad steps, and just after going back
        assert run_training(max_steps=pause, **options) == 0
    assert run_training(**options) == 0
    assert "went back to rwkv-step-4.state" in capsys.readouterr().out
    back = [record for record in read_metrics(out) if "rollback" in record]
    assert [(r["step"], r["rollback"], r["left_out"]) for r in back] == [
        (7, "rwkv-step-4.state", [17, 32])
    ]
    final = load_state(out / "rwkv-final.state")
    assert final["guard"]["left_out"] == [[17, 32]] and final["guard"]["rollbacks"] == 1
    # four steps, then four more: the fifth and the bad ones do not count
    assert final["step"] == 12 and final["optimizer_steps"] == 8
    assert loss_steps(out) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    if pause is None:
        at_4 = load_state(out / "rwkv-step-4.state")
        assert_same_model(at_4, load_state(out / "rwkv-step-8.state"))
    else:
        assert run_training(proj_dir=tmp_path / "whole", **options) == 0
        assert_same_weights(tmp_path / "whole/rwkv-final.pth", out / "rwkv-final.pth")


def test_a_run_that_would_go_back_too_often_stops_with_the_cause(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    poison("gradient", parse("21-999"))
    options = {**OPTIONS, "exit_tokens": 30 * 128, "save_every_steps": 4}
    assert run_training(max_rollbacks=2, bad_steps_before_rollback=2, **options) == 1
    err = capsys.readouterr().err
    assert "error: 2 steps in a row were bad, steps 10 to 11" in err
    assert "gone back 2 times already (--max_rollbacks 2)" in err
    for path in (tmp_path / "out").glob("*.state"):
        load_state(path)


def test_bad_steps_before_anything_was_saved_end_the_run(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    poison("loss", parse("1-99"))
    assert run_training(**OPTIONS) == 1
    err = capsys.readouterr().err
    assert "error: 3 steps in a row were bad, steps 1 to 3, samples 1 to 12" in err
    assert "no earlier state" in err
    assert {p.name for p in (tmp_path / "out").glob("rwkv-*")} == {"rwkv-init.pth"}


def test_weights_that_become_nan_are_never_saved_and_the_run_goes_back_to_good_ones(
    run_training: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    models: list[TrainingModule] = []
    configure = TrainingModule.configure_optimizers
    add_loss = Progress.add_loss

    def remembered(module: TrainingModule) -> torch.optim.Optimizer:
        models.append(module)
        return configure(module)

    def struck(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if progress.step == 6:
            with torch.no_grad():
                models[-1].model.head.weight[3, 3] = torch.nan

    monkeypatch.setattr(TrainingModule, "configure_optimizers", remembered)
    monkeypatch.setattr(Progress, "add_loss", struck)
    options = {**OPTIONS, "exit_tokens": 12 * 128, "save_every_steps": 2}
    assert run_training(**options) == 0
    printed = capsys.readouterr()
    assert "rwkv-step-6.state was not written: weights of head.weight holds NaN" in printed.err
    assert "went back to rwkv-step-4.state after step 9" in printed.out
    for path in (tmp_path / "out").glob("rwkv-*.state"):
        load_state(path)
    final = torch.load(tmp_path / "out" / "rwkv-final.pth", weights_only=True)
    assert all(value.isfinite().all() for value in final.values())


def test_a_spike_is_left_out(run_training: Run, tmp_path: Path):
    # sample 99 is in step 24
    poison("spike", parse("99-99"))
    options = {**OPTIONS, "exit_tokens": 28 * 128}
    assert run_training(spike_sigma=4, **options) == 0
    (record,) = skipped(tmp_path / "out")
    assert record["step"] == 24 and "spike" in record["skipped"]
    assert loss_steps(tmp_path / "out") == [*range(24), *range(25, 28)]


def test_a_bad_window_leaves_no_trace_in_the_carried_states(run_training: Run, tmp_path: Path):
    out = tmp_path / "out"
    # rows of 128 tokens in four windows: rows 1 to 4 in steps 0 to 3, rows 5 to 8 in steps 4 to 7
    options = {
        **OPTIONS,
        "ctx_len": 128,
        "chunk_len": 32,
        "bptt_chunks": 1,
        "exit_tokens": 8 * 128,
        "bad_steps_before_rollback": 0,
    }
    step, seen = TrainingModule.training_step, []

    def nan_in_the_second_window(module: TrainingModule, batch: Batch, index: int) -> torch.Tensor:
        loss = step(module, batch, index)
        if batch.position != 32:
            return loss
        seen.append(batch.numbers)
        end, state = module.carried._states[batch.numbers]
        module.carried._states[batch.numbers] = end, map_state(lambda t: t * torch.nan, state)
        return loss * torch.nan

    TrainingModule.training_step = nan_in_the_second_window
    poisoned = TrainingModule.training_step
    assert run_training(max_steps=2, **options) == 0
    carried = load_state(out / "rwkv-0.state")["carried"]
    TrainingModule.training_step = step
    assert run_training(proj_dir=tmp_path / "one", max_steps=1, **options) == 0
    before = load_state(tmp_path / "one" / "rwkv-0.state")["carried"]
    assert (before["position"], carried["position"]) == (32, 64) and seen == [(1, 2, 3, 4)]
    assert content_digest(carried["states"]) == content_digest(before["states"])
    TrainingModule.training_step = poisoned
    assert run_training(**options) == 0
    assert loss_steps(out) == [0, 2, 3, 4, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "what", "changes"),
    [
        ("ddp", "loss", {}),
        ("deepspeed_stage_2", "loss", {"precision": "bf16"}),
        ("deepspeed_stage_3", "gradient", {"micro_bsz": 1, "accumulate_grad_batches": 2}),
    ],
)
def test_two_processes_leave_a_step_out_alike(
    flags: Callable[..., list[str]],
    run_training: Run,
    tmp_path: Path,
    strategy: str,
    what: str,
    changes: dict,
):
    # Step 3 has sample 14, which is the second process's; steps 5 to 7 are gone back from, to the
    # state after step 2.
    samples, accumulated = "14-14,21-32", changes.get("accumulate_grad_batches", 1)
    options = {**OPTIONS, "exit_tokens": 10 * 128, "save_every_steps": 3}
    words = flags(devices=2, strategy=strategy, **{"micro_bsz": 2, **options, **changes})
    done = start("tests.training.inject_nan", what, samples, *words, ranks=2)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    out, one = tmp_path / "out", tmp_path / "one"
    first = skipped(out)[0]
    assert first["step"] == 3 and first["samples"] == [13, 16]
    if what == "loss":
        assert 14 in first["suspects"] and len(first["suspects"]) == 4 // (2 * accumulated)
    assert "went back to rwkv-step-3.state" in done.stdout
    assert_same_model(load_state(out / "rwkv-step-3.state"), load_state(out / "rwkv-step-8.state"))
    assert load_state(out / "rwkv-final.state")["optimizer_steps"] == 5
    assert loss_steps(out) == [0, 1, 2, 4, 8, 9]
    poison(what, parse(samples))
    precision = {k: v for k, v in changes.items() if k == "precision"}
    assert run_training(proj_dir=one, **options, **precision) == 0
    # bf16: three significant digits
    assert losses(out) == pytest.approx(losses(one), rel=1e-2 if precision else 1e-5)
