"""The wheel, installed elsewhere, holds all it needs: commands, kernels' sources, tables.

It is built once and installed into an environment of its own. Its dependencies are those of the
environment that runs the tests; nothing is downloaded and nothing of the checkout can be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT

pytest.importorskip("hatchling", reason="needs hatchling to build the wheel (requirements-dev.txt)")

CALL_WKV6 = """
import json
import torch
from rwkv_train.ops.native.build import SOURCES
from rwkv_train.ops.wkv6 import wkv6
from rwkv_train.version import code_version

torch.manual_seed(1)
r, k, v = torch.randn(3, 1, 5, 2, 8).unbind()
w, u = -torch.rand(1, 5, 2, 8), torch.randn(2, 8)
y, state = wkv6(r, k, v, w, u, backend="native")
expected, _ = wkv6(r, k, v, w, u, backend="reference")
error = (y - expected).abs().max().item()
print(json.dumps({"sources": str(SOURCES), "version": code_version(), "error": error}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip_wheel = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *pip_wheel], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # The outer pip, run by the new Python: `pip --python` is younger than Python 3.10's pip.
    pip_install = ["install", "--no-deps", "--no-index", "--ignore-installed", "-q", str(wheel)]
    subprocess.run(
        [str(folder / "bin" / "python"), "-m", "pip", *pip_install],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(outer)},
        check=True,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    # A .pth file inside these folders is not followed, so that an editable installation of the
    # checkout stays unseen.
    (packages / "outer.pth").write_text("\n".join(outer) + "\n")
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder outside the checkout."""
    return tmp_path_factory.mktemp("elsewhere")


def call(environment: Path, folder: Path, command: str, *arguments: str) -> str:
    """Runs a command of the environment in a folder; returns what it printed on stdout."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(environment / "bin" / command), *arguments],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_installs_one_package_with_all_sources_in_it(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"rwkv_train"}
    native = {path.relative_to(ROOT) for path in (ROOT / "cuda").rglob("*") if path.is_file()}
    assert {f"rwkv_train/{path.as_posix()}" for path in native} <= names
    assert "rwkv_train/cuda/wkv7/wkv7_cuda.cu" in names
    assert "rwkv_train/ops/backends/measurements.csv" in names
    assert "rwkv_train/data/tokenize/world_trie.cpp" in names
    assert "rwkv_train/serving/chat_page.html" in names
    parts = ("report_page.html", "report_page.css", "report_page.js", "reference_curves.json")
    assert {f"rwkv_train/report/{name}" for name in parts} <= names
    assert {
        f"rwkv_train/evaluation/tasks/{name}" for name in ("rwkv_kinds.yaml", "kinds.jsonl")
    } <= names


def test_the_console_commands_make_data_train_generate_and_evaluate(
    environment: Path, elsewhere: Path
):
    text = "\n".join(json.dumps({"text": f"the number {n} and then"}) for n in range(40))
    (elsewhere / "tiny.jsonl").write_text(text + "\n", encoding="utf-8")
    call(environment, elsewhere, "rwkv-data", "tiny.jsonl", "1", "16", "--tokenizer", "bytes")
    model = ["--n_layer", "1", "--n_embd", "32", "--head_size", "16", "--rwkv_version", "6"]
    # Two processes, because the second is started again from the command line.
    machine = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--micro_bsz", "1"]
    length = ["--ctx_len", "16", "--exit_tokens", "160", "--plot", "0", "--lr_init", "1e-3"]
    files = ["--data_file", "tiny", "--proj_dir", "out"]
    call(environment, elsewhere, "rwkv-train", *files, *model, *machine, *length)
    lines = (elsewhere / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records if "loss" in record] == [0, 1, 2, 3, 4]
    load = ["--load_model", "out/rwkv-final.pth", "--max_tokens", "3", "--seed", "1"]
    assert call(environment, elsewhere, "rwkv-generate", *load, "the").startswith("the")
    measured = call(environment, elsewhere, "rwkv-eval", *load[:2], "--text", "tiny.jsonl")
    assert "40 documents" in measured and "bits per byte" in measured
    assert "wrote out/report.html" in call(environment, elsewhere, "rwkv-report", "out")


def test_an_operator_is_called_from_a_script_elsewhere(environment: Path, elsewhere: Path):
    (elsewhere / "script.py").write_text(CALL_WKV6)
    answer = json.loads(call(environment, elsewhere, "python", "script.py").splitlines()[-1])
    assert Path(answer["sources"]).is_relative_to(environment)
    assert answer["error"] < 1e-4
    # No commit: there is no checkout around it.
    assert answer["version"].replace(".", "").isdigit()
