"""What a run asks its model while it trains: told everywhere, and training does not notice."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rwkv_train.config.load import load_config
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.evaluation.agreement import AGREEMENT_LIMITS, logit_difference
from rwkv_train.evaluation.questions import evaluate_choices, read_question
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.evaluation.task_folders import OWN_TASKS
from rwkv_train.inference.loading import load_model
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord, WrittenSample
from rwkv_train.training.live.rank_zero_work import on_rank_zero
from rwkv_train.training.reporting.console import Console
from rwkv_train.training.reporting.metrics_file import read_metrics
from rwkv_train.training.reporting.wandb_log import WandbLog
from tests.models.tiny import VERSIONS, random_tokens, tiny_model
from tests.training.runs import assert_same_weights, start

Run = Callable[..., int]
ASKED = {"sample_every": 4, "sample_tokens": 6, "max_steps": 8}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("the state\n\nof a network\n")
    return path


def test_asking_does_not_change_what_is_trained(
    run_training: Run, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
):
    # Dropout draws from the generator that asking must leave as it was.
    plain, asking = tmp_path / "plain", tmp_path / "asking"
    assert run_training(proj_dir=plain, dropout=0.1, max_steps=8) == 0
    capsys.readouterr()
    assert run_training(proj_dir=asking, dropout=0.1, sample_prompts=prompts, **ASKED) == 0
    assert_same_weights(plain / "rwkv-1.pth", asking / "rwkv-1.pth")
    samples = [record for record in read_metrics(asking) if "samples" in record]
    assert [record["step"] for record in samples] == [3, 7]
    shown = capsys.readouterr().out
    for record in samples:
        assert [sample["prompt"] for sample in record["samples"]] == ["the state", "of a network"]
        assert 0 < record["logit_difference"] < AGREEMENT_LIMITS["fp32"]
        assert f"--- sample 2 of 2 after step {record['step'] + 1}" in shown
    # The seed is the same every time, and the weights are not.
    assert samples[0]["samples"] != samples[1]["samples"]
    assert "WARNING" not in shown
    assert "2 texts as a sample every 4 steps" in shown


def test_tasks_are_run_at_mini_epochs_and_at_the_end(
    run_training: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("lm_eval", reason="needs lm-eval (requirements-dev.txt)")
    assert run_training(eval_tasks="rwkv_kinds, rwkv_texts", eval_limit=6, max_steps=8) == 0
    out = tmp_path / "out"
    found = {r["step"]: r["eval"] for r in read_metrics(out) if "eval" in r}
    assert list(found) == [4, 7]
    shown = capsys.readouterr().out
    assert "and at the end: rwkv_kinds, rwkv_texts" in shown
    assert "tasks after step 5:" in shown and "  rwkv_kinds: acc " in shown
    # The saved weights, asked by our own evaluation, say the same.
    rows = (OWN_TASKS / "kinds.jsonl").read_text().splitlines()[:6]
    questions = [read_question("row", json.loads(row)) for row in rows]
    for step, name in ((4, "rwkv-0.pth"), (7, "rwkv-1.pth")):
        model = load_model(out / name, device=torch.device("cpu"), dtype=torch.float32)
        scorer = Scorer(model)
        own = evaluate_choices(scorer, load_tokenizer("bytes"), questions, prefix=True).values()
        assert found[step]["rwkv_kinds"]["acc"] == pytest.approx(own["acc"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"eval_tasks": "a", "eval_include": "none"}, "folder of tasks none does not exist"),
        ({"eval_tasks": ","}, "names no task"),
        ({"eval_tasks": "a", "strategy": "deepspeed_stage_3"}, "rank zero asks the model alone"),
        ({"eval_limit": 5}, "--eval_limit 5 needs --eval_tasks"),
        ({"sample_every": 2, "head_qk": 8, "rwkv_version": 4, "head_size": None}, "head_qk"),
        ({"sample_every": 0}, "--sample_every 0: must be at least 1"),
        ({"sample_tokens": 5}, "--sample_tokens 5 needs --sample_every"),
        ({"sample_every": 2, "sample_prompts": "none.txt"}, "none.txt cannot be read"),
        ({"sample_every": 2, "sample_prompts": "empty.txt"}, "empty.txt holds no prompt"),
        ({"sample_every": 2, "sample_prompts": "odd.jsonl"}, "odd.jsonl, line 2: there is no key"),
        ({"sample_every": 2, "sample_prompts": "odd.txt"}, "odd.txt, line 1: not UTF-8"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(
    run_training: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: dict[str, Any],
    words: str,
):
    if "eval_include" in asked:
        pytest.importorskip("lm_eval", reason="needs lm-eval (requirements-dev.txt)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a"}\n{"words": "b"}\n')
    (tmp_path / "odd.txt").write_bytes(b"\xff\n")
    assert run_training(**asked) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_parallel_and_recurrent_logits_agree_up_to_rounding(version: str):
    model = tiny_model(version)
    tokens = random_tokens(1, 40)[0].tolist()
    assert 0 < logit_difference(model, tokens) < AGREEMENT_LIMITS["fp32"] / 20
    assert logit_difference(model.double(), tokens) < 1e-13
    assert logit_difference(model.bfloat16(), tokens) < AGREEMENT_LIMITS["bf16"]


def test_a_model_whose_state_is_wrong_is_told_loudly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = tiny_model("6")
    features = model.features

    def forgetting(tokens, state=None, **options):
        # As if the operator gave back another state than it had computed with.
        return features(tokens, None, **options)

    monkeypatch.setattr(model, "features", forgetting)
    difference = logit_difference(model, random_tokens(1, 20)[0].tolist())
    console = Console(0, 10, bar=False)
    sample = WrittenSample("a", "b\x1b[31m")
    for value, loud in ((difference, True), (math.nan, True), (1e-7, False)):
        console.on_samples(SampleRecord(3, (sample,), value, AGREEMENT_LIMITS["fp32"]))
        shown = capsys.readouterr().out
        assert ("WARNING: the model says something else" in shown) is loud
        # What the model writes cannot colour the screen.
        assert "\x1b" not in shown and "--- sample after step 4\nab" in shown


def test_weights_and_biases_gets_curves_and_a_table(monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    logged: list[tuple[dict[str, Any], int]] = []
    log = WandbLog.__new__(WandbLog)
    log._run = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    log.on_tasks(TaskRecord(4, {"rwkv_kinds": {"acc": 0.5}}))
    log.on_samples(SampleRecord(4, (WrittenSample("a", "b"),), 1e-7, 1e-4))
    (curves, step), (table, _) = logged
    assert (curves, step) == ({"eval/rwkv_kinds/acc": 0.5}, 5)
    assert isinstance(table["samples"], wandb.Table) and table["samples"].data == [["a", "b"]]


def test_other_ranks_wait_for_rank_zero_and_a_fault_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
):
    rounds: list[bool] = []

    def wait_for_rank_zero(strategy: object, wait: Callable[[float], bool]) -> None:
        while not wait(0.01):
            rounds.append(False)

    place = "rwkv_train.training.live.rank_zero_work.wait_for_rank_zero"
    monkeypatch.setattr(place, wait_for_rank_zero)
    model, going = tiny_model("6").train(), threading.Event()
    precision = SimpleNamespace(val_step_context=torch.enable_grad)
    trainer = SimpleNamespace(
        world_size=2, is_global_zero=True, strategy=None, precision_plugin=precision
    )

    def work() -> tuple[bool, str]:
        while len(rounds) < 3:
            going.wait(0.01)
        return model.training, threading.current_thread().name

    training, thread = on_rank_zero(trainer, model, work)
    assert not training and thread.startswith("asked model") and model.training
    trainer.is_global_zero = False
    assert on_rank_zero(trainer, model, work) is None
    trainer.is_global_zero = True
    with pytest.raises(KeyError):
        on_rank_zero(trainer, model, lambda: {}["nothing"])
    assert model.training


def test_a_folder_of_tasks_may_lie_in_the_home_folder():
    config = load_config(
        ["--eval_tasks", "a,b", "--eval_include", "~/tasks", "--sample_every", "3"]
    )
    assert config.log.eval_include == str(Path("~/tasks").expanduser())
    assert config.log.sample_tokens == 64


def test_two_ranks_ask_as_one_does(flags: Callable[..., list[str]], tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    asked = {**ASKED, "max_steps": 4}
    for out, ranks in ((one, 1), (two, 2)):
        line = flags(proj_dir=out, devices=None, micro_bsz=4 // ranks, **asked)
        done = start("train.py", *line, ranks=ranks)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = (
        [record for record in read_metrics(out) if "samples" in record] for out in (one, two)
    )
    # Rank zero has written once, what one process writes from these weights.
    assert [record["samples"] for record in first] == [record["samples"] for record in second]
    assert len(second) == 1
