"""DeepSpeed's extensions: locks of the dead are removed, what cannot be compiled is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.training.distributed import extensions
from rwkv_train.training.distributed.extensions import (
    check_extensions,
    extension_folder,
    needed_extensions,
    prepare_extensions,
)
from tests.config.resolving import EIGHT_GPUS, MINIPILE, resolved
from tests.training.runs import start

NAME = "deepspeed_shm_comm"
HOLD = (
    "import sys, time; from torch.utils.file_baton import FileBaton\n"
    "baton = FileBaton(sys.argv[1]); assert baton.try_acquire(); print(flush=True)\n"
    "sys.stdin.readline(); baton.release()"
)
if sys.platform != "linux":
    pytest.skip("DeepSpeed compiles nothing for CPUs here", allow_module_level=True)


def hardware(strategy: str, discovered=MINIPILE):
    return resolved(f"--strategy {strategy} --devices 2", discovered)[0].hardware


@pytest.fixture
def zero(monkeypatch, tmp_path):
    """The hardware of a ZeRO run on a CPU, whose extensions are built in a folder of its own."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "with space"))
    extension_folder(NAME).mkdir(parents=True)
    return hardware("deepspeed_stage_2")


def test_strategies_need_what_deepspeed_loads():
    assert needed_extensions(hardware("ddp")) == ()
    assert needed_extensions(hardware("deepspeed_stage_1")) == (NAME,)
    assert needed_extensions(hardware("deepspeed_stage_3", EIGHT_GPUS)) == ()
    assert needed_extensions(hardware("deepspeed_stage_3_offload", EIGHT_GPUS)) == ("cpu_adam",)


def test_extensions_lie_where_torch_builds_them(monkeypatch, tmp_path):
    monkeypatch.setattr(torch._appdirs, "user_cache_dir", lambda appname: str(tmp_path / appname))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    for _ in range(2):
        theirs = torch.utils.cpp_extension._get_build_directory("some_name", False)
        assert str(extension_folder("some_name")) == theirs
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "other"))


def test_the_lock_of_a_killed_build_is_removed_and_said(zero, capsys):
    lock = extension_folder(NAME) / "lock"
    lock.touch()
    prepare_extensions(zero)
    assert not lock.exists()
    said = capsys.readouterr().err
    assert f"a build of DeepSpeed's {NAME} was killed; its lock {lock} is removed" in said
    assert f"compiling DeepSpeed's {NAME}" in said


def test_what_is_built_is_not_announced(zero, capsys):
    (extension_folder(NAME) / f"{NAME}.so").touch()
    prepare_extensions(zero)
    assert capsys.readouterr().err == ""


def test_a_living_owner_is_waited_for_and_named(zero, capsys, monkeypatch):
    lock = extension_folder(NAME) / "lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    owner.stdout.readline()
    waited = []

    def release(seconds: float) -> None:
        assert lock.exists(), "it was removed although its owner lives"
        waited.append(seconds)
        if len(waited) == 2:
            owner.communicate(b"\n")

    monkeypatch.setattr(extensions.time, "sleep", release)
    prepare_extensions(zero)
    assert len(waited) == 2
    said = capsys.readouterr().err
    assert said.count(f"waiting for process {owner.pid}, which compiles DeepSpeed's {NAME}") == 1
    assert "killed" not in said


def test_an_owner_that_dies_while_it_is_waited_for_holds_nobody_up(zero, capsys, monkeypatch):
    lock = extension_folder(NAME) / "lock"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    owner.stdout.readline()

    def kill(seconds: float) -> None:
        owner.kill()
        owner.communicate()

    monkeypatch.setattr(extensions.time, "sleep", kill)
    prepare_extensions(zero)
    assert not lock.exists()
    assert "was killed; its lock" in capsys.readouterr().err


def test_on_a_file_system_of_several_machines_a_build_is_given_time(
    zero, capsys, monkeypatch, tmp_path
):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/a rw\n"
        f"2 1 0:2 / {tmp_path} rw shared:1 - nfs4 server:/home rw\n"
    )
    monkeypatch.setattr(extensions, "MOUNTS", mounts)
    lock = extension_folder(NAME) / "lock"
    lock.touch()
    waited = []

    def later(seconds: float) -> None:
        assert lock.exists(), "another machine may hold it"
        waited.append(seconds)
        if len(waited) == 2:
            long_ago = time.time() - 2 * extensions.QUIET_S
            os.utime(lock, (long_ago, long_ago))

    monkeypatch.setattr(extensions.time, "sleep", later)
    prepare_extensions(zero)
    assert len(waited) == 2 and not lock.exists()
    assert "waiting for another machine" in capsys.readouterr().err


def test_without_ninja_or_a_compiler_the_run_is_refused(zero, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BackendError, match=r"deepspeed_stage_2 compiles .* `pip install ninja`"):
        check_extensions(zero)
    (tmp_path / "ninja").touch(mode=0o755)
    with pytest.raises(BackendError, match=r"no C\+\+ compiler c\+\+; install one"):
        check_extensions(zero)
    (extension_folder(NAME) / f"{NAME}.so").touch()
    check_extensions(zero)


def test_a_folder_that_torch_cannot_use_is_refused(zero, monkeypatch, tmp_path):
    lock = extension_folder(NAME) / "lock"
    lock.mkdir()
    with pytest.raises(BackendError, match="a folder where torch makes a file named lock"):
        check_extensions(zero)
    lock.rmdir()
    # As for a user who may read what another has built: torch locks it even then.
    (extension_folder(NAME) / f"{NAME}.so").touch()
    monkeypatch.setattr(extensions.os, "access", lambda path, mode: False)
    with pytest.raises(BackendError, match=r"which cannot be written; .* TORCH_EXTENSIONS_DIR="):
        check_extensions(zero)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="which cannot be made: Not a directory"):
        check_extensions(zero)


def test_a_ninja_beside_python_is_put_where_torch_looks(zero, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("ninja", "c++"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    check_extensions(zero)
    assert shutil.which("ninja") == str(tmp_path / "bin" / "ninja")


def test_a_zero_run_is_not_held_up_by_a_lock(tmp_path):
    """Hangs, without the check, until the time of the test is up."""
    root = tmp_path / "extensions"
    built = extension_folder(NAME)
    if built.exists():
        shutil.copytree(built, root / NAME)
    (root / NAME).mkdir(parents=True, exist_ok=True)
    (root / NAME / "lock").touch()
    line = (
        f"--proj_dir {tmp_path / 'run'} --data_type dummy --vocab_size 13 --n_layer 1 --n_embd 64 "
        "--ctx_len 16 --micro_bsz 1 --epoch_steps 2 --exit_tokens 32 --accelerator cpu "
        "--strategy deepspeed_stage_1 --devices 1"
    )
    ended = start("train.py", *line.split(), environment={"TORCH_EXTENSIONS_DIR": str(root)})
    assert ended.returncode == 0, ended.stderr
    assert "its lock" in ended.stderr
    assert not (Path(root) / NAME / "lock").exists()
