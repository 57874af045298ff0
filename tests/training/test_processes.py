"""Two processes train as one does: same losses, validation and gradient norms, same files.

Every start of two processes takes seconds, so the runs are shared by the tests of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.inference.loading import load_model
from tests.training.two_processes import LIGHTNING, STEPS, TORCHRUN, Ended

pytestmark = pytest.mark.slow


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


def test_waits_for_the_other_process_are_a_share_of_every_step(two: Ended, one: Ended):
    shares = two.values("communication_share").values()
    assert len(shares) == STEPS and all(0 < share < 1 for share in shares)
    assert set(one.values("communication_share").values()) == {0}


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
