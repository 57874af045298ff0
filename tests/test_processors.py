"""How many processors a process may use, and how OpenMP's threads wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_train import processors
from rwkv_train.processors import prepare_threads, usable_processors
from tests.checkout import ROOT

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Path:
    """A machine with eight processors and no quota; the folder of its control groups."""
    monkeypatch.setattr(processors, "_processors_allowed", lambda: 8)
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr(processors, "OWN_CGROUPS", tmp_path / "own")
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


def group(root: Path, own: str, **files: str) -> None:
    """Writes this process's groups, and files of groups: "a/b/cpu.max" as a__b__cpu_max."""
    (root / "own").write_text(own)
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_without_a_quota_all_allowed_processors_count(machine):
    assert usable_processors() == 8
    group(machine, "0::/", **{"cpu.max": "max 100000"})
    assert usable_processors() == 8


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("9900000 100000", 8)],
)
def test_a_quota_counts_whole_processors(machine, quota, expected):
    group(machine, "0::/", **{"cpu.max": quota})
    assert usable_processors() == expected


def test_the_tightest_quota_of_the_groups_above_counts(machine):
    group(
        machine,
        "0::/job/step\n",
        **{"cpu.max": "max 100000", "job/cpu.max": "300000 100000", "job/step/cpu.max": "max 1000"},
    )
    assert usable_processors() == 3


def test_a_path_of_the_host_that_the_container_lacks_leads_to_its_own_root(machine):
    group(machine, "0::/kubepods/pod1/abc\n", **{"cpu.max": "400000 100000"})
    assert usable_processors() == 4


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_the_older_version_of_groups_is_read(machine, controllers):
    files = {"cpu.cfs_quota_us": "250000\n", "cpu.cfs_period_us": "100000\n"}
    own = f"5:memory:/a\n4:{controllers}:/docker/x\n1:name=systemd:/\n"
    group(machine, own, **{f"cpu/{name}": text for name, text in files.items()})
    assert usable_processors() == 2
    group(machine, own, **{"cpu/cpu.cfs_quota_us": "-1\n"})
    assert usable_processors() == 8


@pytest.mark.parametrize("text", ["", "nonsense", "100000 0", "a b"])
def test_a_quota_that_makes_no_sense_is_none(machine, text):
    group(machine, "0::/", **{"cpu.max": text})
    assert usable_processors() == 8


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_the_processors_that_a_process_is_bound_to_count():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from rwkv_train.processors import usable_processors; print(usable_processors())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def test_threads_sleep_before_long_and_fit_the_quota(machine):
    group(machine, "0::/", **{"cpu.max": "200000 100000"})
    prepare_threads()
    assert os.environ["GOMP_SPINCOUNT"] == str(processors.SPINS_BEFORE_SLEEP)
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_without_a_quota_the_number_of_threads_is_left_to_torch(machine):
    prepare_threads()
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_the_users_own_settings_win(machine, monkeypatch, name):
    group(machine, "0::/", **{"cpu.max": "200000 100000"})
    monkeypatch.setenv(name, "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    prepare_threads()
    assert os.environ[name] == "7" and os.environ["OMP_NUM_THREADS"] == "5"
    assert len({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()) == 1


@pytest.mark.parametrize("program", ["train.py", "generate.py"])
def test_programs_set_it_before_torch_is_loaded(program, tmp_path):
    """Reads what torch would: OpenMP is loaded with it, and reads its settings then."""
    (tmp_path / "torch.py").write_text(
        "import os\nraise SystemExit(f\"spins {os.environ.get('GOMP_SPINCOUNT')}\")\n"
    )
    flags = {
        "train.py": ("--proj_dir", str(tmp_path / "run"), "--data_type", "dummy"),
        "generate.py": ("--load_model", "none.pth"),
    }[program]
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, program, *flags],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.endswith(f"spins {processors.SPINS_BEFORE_SLEEP}\n")
