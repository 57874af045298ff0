"""DeepSpeed trains in a process that is alone and was started by no launcher."""

from __future__ import annotations

from tests.training.runs import losses, start


def test_one_process_trains_under_zero_without_a_launcher(flags, tmp_path):
    run = start("train.py", *flags(strategy="deepspeed_stage_2", exit_tokens=512))
    assert run.returncode == 0, run.stderr
    assert list(losses(tmp_path / "out")) == [0, 1, 2, 3]
