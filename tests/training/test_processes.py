"""Two processes train as one does: same losses, validation and gradient norms, same files.

Every start of two processes takes seconds, so the runs are shared by the tests of this file.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sampler import sample_offset
from rwkv_train.inference.loading import load_model
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training.runs import start, start_cold

pytestmark = pytest.mark.slow

# 1000 tokens at 4 x 32 a step: 8 steps, mini-epochs after steps 4 and 8
STEPS = 8
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
# train.py starts the second process, as for a user.
LIGHTNING = []


@dataclass
class Ended:
    """What a run left: its exit status, all it printed, its folder."""

    status: int
    printed: str
    folder: Path

    def values(self, key: str) -> dict[int, float]:
        """step -> value of the records that have `key`."""
        return {r["step"]: r[key] for r in read_metrics(self.folder) if key in r}


@pytest.fixture(scope="module")
def command(corpus: Path) -> Callable[..., list[str]]:
    """Flags of one run with a global batch of 4 samples, changed by keyword."""

    def build(folder: Path, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "proj_dir": folder,
            "data_file": corpus,
            "val_data_file": f"{corpus}_val",
            "val_samples": 5,
            "rwkv_version": 6,
            "n_layer": 2,
            "n_embd": 32,
            "head_size": 32,
            "ctx_len": 32,
            "exit_tokens": 1000,
            "epoch_steps": 4,
            "epoch_save": 1,
            "lr_init": "2e-3",
            "lr_final": "2e-4",
            "warmup_steps": 3,
            "weight_decay": 0.1,
            "grad_clip": 0.5,
            "accelerator": "cpu",
            "precision": "fp32",
            "num_workers": 0,
            "plot": 0,
            "wkv_backend": "chunked",
            **changes,
        }
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]

    return build


@pytest.fixture(scope="module")
def two_processes(command: Callable[..., list[str]]) -> Callable[..., Ended]:
    """Runs train.py with two processes.

    launcher: None, both begin warm and are told their ranks; LIGHTNING or TORCHRUN, the whole start
    is a user's. self_started: the first begins warm, and starts the second itself.
    """

    def run(
        folder: Path,
        strategy: str,
        launcher: list[str] | None = None,
        self_started: bool = False,
        environment: dict[str, str] | None = None,
        **changes: object,
    ) -> Ended:
        flags = {"devices": 2, "micro_bsz": 2, "strategy": strategy, **changes}
        if launcher == TORCHRUN:
            # It says how many there are.
            del flags["devices"]
        words = ["train.py", *command(folder, **flags)]
        if launcher is not None:
            done = start_cold(*launcher, *words)
        else:
            done = start(*words, ranks=1 if self_started else 2, environment=environment)
        return Ended(done.returncode, done.stdout + done.stderr, folder)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file are."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def one(folder: Path, command: Callable[..., list[str]]) -> Ended:
    """The run of a single process, without interruption."""
    status = train.main(command(folder / "one", devices=1, micro_bsz=4))
    return Ended(status, "", folder / "one")


@pytest.fixture(
    scope="module",
    params=[
        ("ddp", {"launcher": LIGHTNING, "num_workers": 1}),
        ("deepspeed_stage_1", {"launcher": TORCHRUN}),
        ("deepspeed_stage_3", {"accumulate_grad_batches": 2, "micro_bsz": 1}),
    ],
    ids=["ddp", "deepspeed_stage_1-under-torchrun", "deepspeed_stage_3-accumulating"],
)
def two(request: pytest.FixtureRequest, folder: Path, two_processes: Callable[..., Ended]) -> Ended:
    """A run of two processes without interruption."""
    strategy, changes = request.param
    return two_processes(folder / strategy, strategy, **changes)


@pytest.fixture(scope="module")
def resumed(
    folder: Path, two_processes: Callable[..., Ended], command: Callable[..., list[str]]
) -> list[Ended]:
    """One run in four parts: ZeRO 2 accumulating, ZeRO 3, ddp, a single process."""
    path = folder / "resumed"
    parts = [
        two_processes(
            path, "deepspeed_stage_2", max_steps=2, micro_bsz=1, accumulate_grad_batches=2
        ),
        two_processes(path, "deepspeed_stage_3", max_steps=5),
        two_processes(path, "ddp", max_steps=7),
    ]
    parts.append(Ended(train.main(command(path, devices=1, micro_bsz=4)), "", path))
    return parts


def assert_same_run(run: Ended, other: Ended) -> None:
    for key in ("loss", "grad_norm", "val_loss"):
        found, expected = run.values(key), other.values(key)
        assert found.keys() >= expected.keys(), key
        for step, value in expected.items():
            assert found[step] == pytest.approx(value, rel=1e-4), (key, step)
    assert run.values("lr") == other.values("lr")


def assert_clean(run: Ended) -> None:
    assert run.status == 0, run.printed
    assert "Traceback" not in run.printed and "Warning" not in run.printed, run.printed


def weights(run: Ended) -> Iterator[tuple[str, torch.Tensor]]:
    """The final weights by name, as the generator of text would load them."""
    model = load_model(
        run.folder / "rwkv-final.pth", device=torch.device("cpu"), dtype=torch.float32
    )
    yield from model.state_dict().items()


def test_one_process_runs_to_the_end_and_learns(one: Ended):
    assert one.status == 0
    losses = one.values("loss")
    assert list(losses) == list(range(STEPS))
    assert list(one.values("val_loss")) == [3, 7]
    assert losses[STEPS - 1] < losses[0] - 0.5


def test_two_processes_leave_with_status_0_and_no_traceback(two: Ended):
    assert_clean(two)


def test_two_processes_train_as_one(two: Ended, one: Ended):
    assert list(two.values("loss")) == list(range(STEPS))
    assert_same_run(two, one)


def test_two_processes_end_with_the_weights_of_one(two: Ended, one: Ended):
    expected = dict(weights(one))
    found = dict(weights(two))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-5), name


def test_only_the_first_process_speaks(two: Ended):
    assert two.printed.count("RWKV-6 fp32 on 2 x CPU") == 1
    assert two.printed.count("rwkv-final.pth") == 1


def test_a_run_goes_on_under_another_strategy_and_number_of_processes(
    resumed: list[Ended], one: Ended
):
    for part in resumed:
        assert_clean(part)
    assert list(resumed[-1].values("loss")) == list(range(STEPS))
    assert_same_run(resumed[-1], one)
    expected = dict(weights(one))
    for name, value in weights(resumed[-1]):
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name


def test_states_carried_inside_rows_go_on_under_another_strategy_and_number_of_processes(
    folder: Path, two_processes: Callable[..., Ended], command: Callable[..., list[str]]
):
    # 3 groups of samples in windows of 16 = 2 x 8 tokens: the parts end inside rows
    windows = {"rwkv_version": 7, "chunk_len": 8, "bptt_chunks": 2, "exit_tokens": 384}
    whole = Ended(
        train.main(command(folder / "windows", devices=1, micro_bsz=4, **windows)),
        "",
        folder / "windows",
    )
    path = folder / "windows-resumed"
    parts = [
        two_processes(path, "deepspeed_stage_3", max_steps=1, **windows),
        two_processes(
            path,
            "deepspeed_stage_2",
            max_steps=3,
            micro_bsz=1,
            accumulate_grad_batches=2,
            **windows,
        ),
        two_processes(path, "ddp", max_steps=5, **windows),
    ]
    parts.append(Ended(train.main(command(path, devices=1, micro_bsz=4, **windows)), "", path))
    for part in parts:
        assert_clean(part)
    assert list(parts[-1].values("loss")) == list(range(6))
    assert_same_run(parts[-1], whole)
    expected = dict(weights(whole))
    for name, value in weights(parts[-1]):
        assert torch.allclose(value, expected[name], rtol=1e-3, atol=1e-5), name


def test_bf16_under_zero_2_learns_and_saves_bf16(
    folder: Path, two_processes: Callable[..., Ended], one: Ended
):
    run = two_processes(folder / "bf16", "deepspeed_stage_2", precision="bf16")
    assert_clean(run)
    losses = run.values("loss")
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[STEPS - 1] < losses[0] - 0.5
    for step, loss in one.values("loss").items():
        # three significant digits of bf16
        assert losses[step] == pytest.approx(loss, rel=0.02)
    saved = torch.load(run.folder / "rwkv-final.pth", weights_only=True)
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}


@pytest.fixture(scope="module")
def spoilt(corpus: Path, folder: Path) -> Path:
    """The corpus with token id 300, beyond its vocabulary of 257, in sample 14.

    With a global batch of 4, sample 1 + 3 * 4 + 1 is the second process's first one in step 3.
    """
    prefix = folder / "spoilt"
    for suffix in (".idx", ".bin"):
        shutil.copy(f"{corpus}{suffix}", f"{prefix}{suffix}")
    source = open_source(str(prefix), "binidx")
    position = sample_offset(14, magic_prime(source.tokens, 32), 32) + 7
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.seek(2 * position)
        file.write((300).to_bytes(2, "little"))
    return prefix


def test_bad_data_met_by_one_process_ends_both_with_one_line(
    folder: Path, spoilt: Path, two_processes: Callable[..., Ended]
):
    run = two_processes(folder / "bad", "ddp", self_started=True, data_file=spoilt, vocab_size=257)
    assert run.status == 2
    assert "Traceback" not in run.printed, run.printed
    lines = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1 on ")
    assert "token id 300 at position 7 of sample 14" in lines[0]
    assert list(run.values("loss")) == [0, 1, 2]
    assert not list(run.folder.glob("rwkv-[0-9]*"))


def test_a_checkpoint_that_cannot_be_written_ends_both_with_one_line(
    folder: Path, two_processes: Callable[..., Ended]
):
    # A folder in the place of the first checkpoint; root may write nearly everywhere else.
    (folder / "full" / "rwkv-0.pth").mkdir(parents=True)
    run = two_processes(
        folder / "full", "deepspeed_stage_1", self_started=True, max_steps=4, save_retry_seconds=0
    )
    assert run.status == 1
    assert "Traceback" not in run.printed, run.printed
    lines = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "rwkv-0.pth" in lines[0]
    assert not list(run.folder.glob("*.partial")) and not list(run.folder.glob("*.state"))


def test_the_first_process_alone_says_that_there_is_no_compiler(two_processes, folder, tmp_path):
    nothing = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ended = two_processes(
        folder / "no_compiler",
        "ddp",
        self_started=True,
        environment=nothing,
        wkv_backend="auto",
        exit_tokens=256,
    )
    assert ended.status == 0, ended.printed
    lines = [line.strip() for line in ended.printed.splitlines()]
    told = [line for line in lines if " wkv6" in line or " token_shift" in line]
    assert len(told) == 3, ended.printed
    assert told[0] == "operators   wkv6: chunked, cpu"
    assert told[1].startswith("operators   token_shift, ") and told[1].endswith(": reference, cpu")
    assert told[2].startswith("note        wkv6, token_shift, ")
    assert " run on the CPU without kernels, several times slower, because" in told[2]
    assert "no C++ compiler" in told[2]
