"""A run from data to final weights, and what it leaves on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.resume import load_state
from rwkv_train.report.run_records import read_metrics, read_steps
from tests.training.runs import assert_same_weights, loss_steps, losses, weights

Run = Callable[..., int]


def log_lines(folder: Path) -> dict[str, list[str]]:
    """Mini-epoch -> loss, perplexity, rate of its last line in train_log.txt."""
    lines = (line.split() for line in (folder / "train_log.txt").read_text().splitlines())
    return {words[0]: words[1:4] for words in lines if words[0].isdigit()}


def test_a_run_ends_with_its_budget_and_leaves_the_files_people_expect(
    run_training: Run, tmp_path: Path
):
    assert run_training() == 0
    out = tmp_path / "out"
    # 1500 tokens at 4 x 32 a step: 12 steps; mini-epochs of 5 end after steps 5 and 10.
    names = {p.name for p in out.glob("*.pth")}
    assert names == {"rwkv-init.pth", "rwkv-0.pth", "rwkv-1.pth", "rwkv-final.pth"}
    records = read_steps(out)
    assert [r["step"] for r in records] == list(range(12))
    assert set(records[0]) == {
        "step",
        "loss",
        "lr",
        "weight_decay",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "loop_share",
        *("seconds", "data_share", "communication_share", "save_share", "validation_share"),
        *("mfu", "mfu_card", "memory", "grad_norms", "goodput"),
    }
    assert all(0 < r["loop_share"] < 1 for r in records)
    assert [r["tokens"] for r in records] == [128 * (s + 1) for s in range(12)]
    assert abs(records[0]["loss"] - math.log(257)) < 0.5
    assert load_state(out / "rwkv-final.state")["step"] == 12


def test_the_log_has_a_header_and_a_line_per_mini_epoch(run_training: Run, tmp_path: Path):
    run_training()
    lines = (tmp_path / "out" / "train_log.txt").read_text().splitlines()
    assert re.fullmatch(r"NEW RUN \d{4}(-\d\d){5}", lines[0])
    assert "'n_layer': 2" in lines[1]
    found = losses(tmp_path / "out")
    for number, line in enumerate(lines[2:]):
        epoch, loss, perplexity, rate, _date, _time, local = line.split()
        steps = range(5 * number, min(5 * number + 5, 12))
        mean = sum(found[s] for s in steps) / len(steps)
        assert (int(epoch), int(local)) == (number, number)
        assert float(loss) == pytest.approx(mean, abs=1e-6)
        assert float(perplexity) == pytest.approx(math.exp(mean), rel=1e-3)
        assert re.fullmatch(r"0\.\d{8}", rate)
    assert len(lines) == 5


def test_a_run_that_is_finished_says_so_and_changes_nothing(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_training()
    out = tmp_path / "out"
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert "\n  heap        " in capsys.readouterr().out
    assert run_training() == 0
    assert "is finished: 12 of 12 steps" in capsys.readouterr().out
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert run_training(max_steps=7) == 0
    assert "it has 12 steps, and 7 were asked for" in capsys.readouterr().out
    # As RWKV-LM's script does to start anew.
    for path in out.glob("rwkv-*.pth"):
        path.unlink()
    assert run_training() == 0
    assert "remove the .state files too" in capsys.readouterr().out


def test_a_run_whose_checkpoints_were_removed_says_what_goes_on_and_how_to_start_anew(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_training(max_steps=5)
    # As RWKV-LM's demo script does before it starts.
    (tmp_path / "out" / "rwkv-0.pth").unlink()
    assert run_training(max_steps=6) == 0
    out = capsys.readouterr().out
    assert "rwkv-0.pth is gone" in out and "remove the .state files too" in out
    assert loss_steps(tmp_path / "out") == list(range(6))


@pytest.mark.parametrize("pause", [7, 10])
def test_a_paused_run_goes_on_exactly(run_training: Run, tmp_path: Path, pause: int):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"dropout": 0.1, "accumulate_grad_batches": 2, "micro_bsz": 2, "weight_decay": 0.01}
    run_training(proj_dir=whole, **options)
    run_training(proj_dir=parts, max_steps=pause, **options)
    assert not (parts / "rwkv-final.pth").exists()
    run_training(proj_dir=parts, **options)
    assert_same_weights(whole / "rwkv-final.pth", parts / "rwkv-final.pth")
    assert losses(whole) == losses(parts)
    # The pause in the middle of mini-epoch 1 leaves a line of its own; the last one counts.
    assert log_lines(whole) == log_lines(parts)


def test_a_damaged_newest_state_is_passed_over_and_the_one_before_used(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    run_training(proj_dir=whole)
    run_training(proj_dir=hurt, max_steps=10)
    state = hurt / "rwkv-1.state"
    state.write_bytes(state.read_bytes()[:-2000])
    capsys.readouterr()
    assert run_training(proj_dir=hurt) == 0
    assert "rwkv-1.state is truncated or damaged" in capsys.readouterr().out
    assert_same_weights(whole / "rwkv-final.pth", hurt / "rwkv-final.pth")


def test_bare_weights_of_another_trainer_go_on_at_the_next_mini_epoch(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    run_training(max_steps=10)
    for state in out.glob("*.state"):
        state.unlink()
    capsys.readouterr()
    assert run_training() == 0
    assert "the optimizer starts empty" in capsys.readouterr().out
    records = read_steps(out)
    assert [r["step"] for r in records] == list(range(12))
    # The ramp is repeated: its first step has 1 % of the scheduled rate.
    assert records[10]["lr"] < 0.02 * records[9]["lr"]


def test_accumulation_and_micro_batch_only_split_the_work(run_training: Run, tmp_path: Path):
    run_training(proj_dir=tmp_path / "a", micro_bsz=4)
    run_training(proj_dir=tmp_path / "b", micro_bsz=1, accumulate_grad_batches=4)
    a, b = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert a.keys() == b.keys()
    for step in a:
        assert a[step] == pytest.approx(b[step], rel=1e-5)


def test_validation_loss_is_the_mean_over_the_held_out_samples(
    run_training: Run, tmp_path: Path, corpus: Path
):
    from rwkv_train.data.samples.dataset import ValidationDataset, evenly_spread_samples
    from rwkv_train.data.samples.token_sources import open_source
    from rwkv_train.inference.loading import load_model

    run_training(val_data_file=f"{corpus}_val", val_samples=7, micro_bsz=4)
    out = tmp_path / "out"
    found = {r["step"]: r["val_loss"] for r in read_metrics(out) if "val_loss" in r}
    assert list(found) == [4, 9, 11]
    model = load_model(out / "rwkv-final.pth", device=torch.device("cpu"), dtype=torch.float32)
    source = open_source(f"{corpus}_val", "binidx")
    samples = ValidationDataset(source, 32, evenly_spread_samples(source.tokens, 32, 7))
    one_by_one = []
    for tokens, targets, *_ in samples:
        logits, _ = model(tokens[None])
        one_by_one.append(torch.nn.functional.cross_entropy(logits[0], targets).item())
    assert found[11] == pytest.approx(sum(one_by_one) / 7, rel=1e-5)


def test_checkpoints_are_in_the_training_precision_unless_fp32_is_asked_for(
    run_training: Run, tmp_path: Path
):
    run_training(proj_dir=tmp_path / "a", precision="bf16", max_steps=5)
    assert {t.dtype for t in weights(tmp_path / "a" / "rwkv-0.pth").values()} == {torch.bfloat16}
    run_training(proj_dir=tmp_path / "b", precision="bf16", max_steps=5, save_fp32=1)
    assert {t.dtype for t in weights(tmp_path / "b" / "rwkv-0.pth").values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert (
        run_training(
            lr_init="1e18", lr_final="1e18", warmup_steps=0, grad_clip=0, on_bad_step="stop"
        )
        == 1
    )
    message = capsys.readouterr().err
    assert re.search(r"error: step \d+: loss .*samples \d+ to \d+", message)
    assert not (tmp_path / "out" / "rwkv-final.pth").exists()
    for path in (tmp_path / "out").glob("*.pth"):
        assert all(t.isfinite().all() for t in weights(path).values()), path


def test_the_saved_configuration_repeats_the_run(run_training: Run, tmp_path: Path):
    import train

    run_training(weight_decay=0.1)
    config = tmp_path / "out" / "config.yaml"
    again = tmp_path / "again"
    assert train.main(["--config", str(config), "--proj_dir", str(again)]) == 0
    assert_same_weights(tmp_path / "out" / "rwkv-final.pth", again / "rwkv-final.pth")


def test_the_plot_and_an_offline_wandb_run_are_written(run_training: Run, tmp_path: Path):
    assert run_training(plot=1, wandb="test", wandb_mode="offline", max_steps=6) == 0
    out = tmp_path / "out"
    assert (out / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(out.glob("wandb/offline-run-*/run-*.wandb"))


def test_metrics_are_one_json_object_a_line(run_training: Run, tmp_path: Path):
    run_training(max_steps=3)
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line), dict)
