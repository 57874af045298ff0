"""The recipes of docs/clusters.md start a run again, and stop to, as its table says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwkv_train.report.run_records import read_metrics
from rwkv_train.training.launchers.exit_statuses import ADVICE, HUNG, PREEMPTED, may_start_again
from tests.checkout import ROOT
from tests.docs.doc_pages import Block, Command, blocks
from tests.docs.own_programs import called
from tests.docs.toy_files import prepare
from tests.docs.toy_shell import ToyShell
from tests.docs.toy_sizes import small

PAGE = ROOT / "docs" / "clusters.md"
# What a scheduler does with a job that asks for it: the same script under the same number.
SBATCH = """#!/bin/bash
echo "Submitted batch job 77"
for start in $(seq 0 20); do
    rm -f requeued
    export SLURM_RESTART_COUNT=$start SLURM_JOB_ID=77 SLURM_PROCID=0 SLURM_LOCALID=0
    SLURM_NODEID=0 bash "$@"
    status=$?
    if [ ! -e requeued ]; then exit $status; fi
done
"""
SCONTROL = '#!/bin/bash\n[ "$1 $2" = "requeue 77" ] && touch requeued\n'


class FaultyShell(ToyShell):
    """Starts train.py with what befalls it, start by start; without anything left undisturbed.

    befalls: moment and signal as of tests.training.kill_at, or the flag of a refusal.
    """

    def __init__(self, befalls: Sequence[str]) -> None:
        super().__init__("docs/clusters.md")
        self._befalls = list(befalls)
        self.statuses: list[int] = []

    def __enter__(self) -> FaultyShell:
        super().__enter__()
        for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        (self.bin / "deepspeed").symlink_to("python")
        return self

    def program(self, words: list[str]) -> tuple[str, list[str]]:
        """Returns the module to run and its arguments."""
        module, given = super().program(words)
        if module != "rwkv_train.training":
            return module, given
        # Long enough for several starts, of one process or two.
        given = [*given, "--exit_tokens=512"]
        what = self._befalls.pop(0) if self._befalls else ""
        if what.startswith("--"):
            return module, [*given, what, "1"]
        return ("tests.training.kill_at", [*what.split(), *given]) if what else (module, given)

    def _start(self, words: list[str], *more: Any) -> int:
        status = super()._start(words, *more)
        if "train.py" in words:
            # Launchers tell a signal as shells do.
            status = status if status < 128 + 65 else 128 + 256 - status
            self.statuses.append(status)
        return status


def recipe(*names: str) -> list[Block]:
    """The blocks of the page that hold one of these words, in its order."""
    found = [b for b in blocks(PAGE) if b.language == "sh" and any(n in b.text for n in names)]
    assert len(found) >= len(names)
    return found


def make_data(folder: Path) -> Block:
    """What the page expects to be there: the data that its commands name."""
    text = "python make_data.py my.jsonl 3 512 --validation 0.01\n"
    prepare(folder, text)
    return Block("docs/clusters.md", 0, "sh", text)


def steps(folder: Path) -> list[int]:
    """The steps in a run's metrics."""
    return [record["step"] for record in read_metrics(folder) if "loss" in record]


def test_the_table_is_that_of_the_program():
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (yes|no): (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    assert {int(status): rest for status, *rest in rows} == {
        status: [advice.means, "yes" if advice.restarts else "no", advice.then]
        for status, advice in ADVICE.items()
    }
    assert may_start_again(137) and may_start_again(-9) and may_start_again(HUNG)
    assert not may_start_again(2) and not may_start_again(0)


def test_the_elastic_recipes_batch_divides_among_all_numbers_of_machines():
    (text,) = [block.text for block in recipe("--nnodes") if ":" in block.text]
    least, most, cards, batch = (
        int(re.search(pattern, text)[1])  # type: ignore[index]
        for pattern in (
            *(r"--nnodes (\d+):", r"--nnodes \d+:(\d+)", r"--nproc_per_node (\d+)"),
            r"--global_batch_size (\d+)",
        )
    )
    assert [n for n in range(least, most + 1) if batch % (n * cards)] == []


FINAL = [status for status, advice in ADVICE.items() if not advice.restarts]


def test_every_recipe_stops_at_the_same_statuses():
    text = PAGE.read_text()
    loops = re.findall(r"for final in ([\d ]+);", text)
    assert [[*map(int, each.split())] for each in loops] == [FINAL] * 2
    told = re.search(r"RestartPreventExitStatus=([\d ]+)", text)
    assert told is not None and [*map(int, told[1].split())] == FINAL[1:]
    assert job()["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == FINAL[1:]


@pytest.mark.slow
def test_a_batch_job_is_put_back_until_it_is_done(tmp_path: Path):
    page = [make_data(tmp_path), *recipe("# job.sh")]
    page.append(Block("docs/clusters.md", 1, "sh", "sbatch job.sh\n"))
    # SIGUSR1 ahead of time, lost tasks, and nothing.
    with FaultyShell(["step:1 USR1", "step:3 KILL"]) as shell:
        done = shell.run(page, tmp_path)
    printed = done.blocks[page[-1]]
    assert done.status == 0, printed
    assert shell.statuses == [PREEMPTED, 137, 0]
    assert [*re.findall(r"ended with status \d+, start (\d)", printed)] == ["0", "1", "2"]
    found = steps(tmp_path / "out" / "slurm")
    assert found == [*range(len(found))] and len(found) >= 4


@pytest.mark.slow
def test_a_loop_starts_again_what_deepspeeds_launcher_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PAUSE", "0")
    page = [make_data(tmp_path), *recipe("# keep_running.sh", "keep_running.sh deepspeed")]
    with FaultyShell(["step:1 TERM", "step:3 KILL"]) as shell:
        done = shell.run(page, tmp_path)
    assert done.status == 0, done.blocks
    assert shell.statuses == [143, 137, 0]
    found = steps(tmp_path / "out" / "deepspeed")
    assert found == [*range(len(found))]


@pytest.mark.slow
@pytest.mark.parametrize("names", [("# job.sh",), ("# keep_running.sh", "keep_running.sh deep")])
def test_a_refused_run_is_never_started_again(tmp_path: Path, names: tuple[str, ...]):
    page = [make_data(tmp_path), *recipe(*names)]
    if names[0] == "# job.sh":
        page.append(Block("docs/clusters.md", 1, "sh", "sbatch job.sh\n"))
    with FaultyShell(["--no_such_flag"] * 5) as shell:
        done = shell.run(page, tmp_path)
    assert (done.status, shell.statuses) == (2, [2])


def job() -> Mapping[str, Any]:
    """The job's specification in the page."""
    (block,) = [block for block in blocks(PAGE) if block.language == "yaml"]
    found: Mapping[str, Any] = yaml.safe_load(block.text)["spec"]
    return found


def run_job(shell: FaultyShell, folder: Path) -> bool:
    """Does what Kubernetes does with the job: makes pods until one succeeds, or it fails."""
    spec = job()
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    environment = {**os.environ, "PATH": f"{shell.bin}:{os.environ['PATH']}"}
    for _ in range(spec["backoffLimit"] + 1):
        words = [*container["command"], *container["args"]]
        words[0] = str(shell.bin / words[0])
        status = subprocess.run(words, cwd=folder, env=environment, check=False).returncode
        if status == 0:
            return True
        for rule in spec["podFailurePolicy"]["rules"]:
            codes = rule.get("onExitCodes")
            if codes and codes["operator"] == "In" and status in codes["values"]:
                assert rule["action"] == "FailJob"
                return False
    return False


@pytest.mark.slow
def test_pods_follow_one_another_until_one_is_done(tmp_path: Path):
    with FaultyShell(["step:1 TERM", "step:3 KILL"]) as shell:
        assert shell.run([make_data(tmp_path)], tmp_path).status == 0
        assert run_job(shell, tmp_path)
    assert shell.statuses == [143, 137, 0]
    with FaultyShell(["--no_such_flag"] * 5) as shell:
        assert not run_job(shell, tmp_path)
    assert shell.statuses == [2]


@pytest.mark.slow
def test_deepspeeds_own_launcher_trains_and_passes_the_status_on(tmp_path: Path):
    page = make_data(tmp_path)
    with ToyShell("docs/clusters.md") as shell:
        assert shell.run([page], tmp_path).status == 0
    (block,) = recipe("keep_running.sh deepspeed")
    words = block.text.replace("\\\n", " ").partition("deepspeed ")[2].split()
    found = called_words(words)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    command += [str(ROOT / "train.py"), *found]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "processes   2, started by DeepSpeed's launcher" in done.stdout
    assert steps(tmp_path / "out" / "deepspeed") == [0, 1]


def called_words(words: list[str]) -> list[str]:
    """The toy arguments of train.py in a launcher's command, which says itself how many."""
    found = called(Command(("deepspeed", *words)))
    assert found is not None
    given = small("docs/clusters.md", *found)
    return [word for word in given if not word.startswith("--devices=")]
