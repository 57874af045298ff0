"""Settings that fit: they do, with the speed that was told, and their order has reasons."""

from __future__ import annotations

import shlex

import pytest

from rwkv_train.config.load import load_config
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError
from rwkv_train.planning.cards import GIB, find_card
from rwkv_train.planning.fit import Fitting
from rwkv_train.planning.memory import memory_plan
from rwkv_train.planning.plan_flags import read_request
from rwkv_train.planning.plan_program import settings_that_fit
from rwkv_train.planning.step_time import step_time
from tests.planning.imagined import imagined


def fitting(line: str) -> list[Fitting]:
    """Returns the settings that a command line of rwkv-plan finds."""
    return settings_that_fit(read_request(line.split()))


def test_the_flags_of_every_row_make_the_run_that_was_promised():
    line = "--n_layer 24 --n_embd 2048 --vocab_size 65536 --ctx_len 4096 --micro_bsz 8"
    found = fitting(line + " --card 4090 --fit")
    card = find_card("4090")
    assert card is not None and {run.config.train.train_type for run in found} == {
        *("all", "lora", "states")
    }
    for run in found:
        again = imagined(f"{line} {run.flags}")
        plan = memory_plan(again)
        assert plan == run.memory
        assert plan.total <= 0.9 * 24 * GIB
        assert step_time(again, card) == run.step
        # The same samples a step as asked for.
        assert again.train.micro_bsz * again.train.accumulate_grad_batches == 8


def test_full_training_comes_before_adapters_before_states_and_faster_before_slower():
    found = fitting("--model 0.4B --ctx_len 4096 --micro_bsz 8 --card 4090 --fit")
    kinds = [run.config.train.train_type for run in found]
    assert kinds == sorted(kinds) and kinds[0] == "all"
    speeds = [run.speed for run in found if run.config.train.train_type == "all"]
    assert speeds == sorted(speeds, reverse=True)
    # Nothing is recomputed where a smaller micro batch does.
    assert not found[0].config.train.grad_cp and found[0].config.train.chunk_len is None


def test_a_run_that_fits_as_it_is_needs_no_flags():
    assert fitting("--model 0.1B --ctx_len 512 --card h100 --fit")[0].flags == ""


def test_what_was_given_stays():
    found = fitting(
        "--model 1.5B --ctx_len 4096 --fit 24GB --devices 2 --strategy deepspeed_stage_2 "
        "--grad_cp 1 --train_type lora --lora_r 4"
    )
    assert found
    for run in found:
        assert not {"strategy", "grad_cp", "train_type", "lora_r"} & set(run.changes)
        assert run.config.train.grad_cp and run.config.adapter.lora_r == 4


def test_more_devices_make_room_by_zero():
    one = fitting("--model 7.2B --ctx_len 2048 --card h100 --fit")
    eight = fitting("--model 7.2B --ctx_len 2048 --card h100 --fit --devices 8")
    assert all("offload" in r.config.hardware.strategy for r in one if r.changes.get("strategy"))
    full = [run for run in eight if run.config.train.train_type == "all"]
    assert full and full[0].config.hardware.strategy in ("deepspeed_stage_2", "deepspeed_stage_3")


def test_what_is_refused_with_a_setting_is_not_found():
    found = fitting("--model 0.4B --ctx_len 2048 --fit 12GB --optimizer muon")
    assert found
    for run in found:
        assert run.config.train.train_type == "all"
        assert "offload" not in run.config.hardware.strategy


def test_nothing_is_found_where_nothing_fits():
    assert fitting("--model 14B --fit 2GB") == []


def test_a_cpu_has_no_offloading_and_no_speed():
    found = fitting("--model 0.1B --fit 8GB --accelerator cpu")
    assert found and all(run.step is None for run in found)


def test_base_models_are_asked_for_where_something_is_adapted():
    found = fitting("--model 1.5B --fit 24GB")
    assert all(
        ("--load_model BASE.pth" in run.flags) == (run.config.train.train_type != "all")
        for run in found
    )


@pytest.mark.parametrize("flags", ["--fit", "--fit --rate 1e12"])
def test_a_memory_must_be_known(flags: str):
    with pytest.raises(ConfigError, match="--fit 24GB"):
        read_request(shlex.split(f"--model 0.1B {flags}"))


def test_the_given_configuration_is_that_of_train_py():
    given = read_request(["--n_layer", "3", "--grad_cp", "1", "--card", "4090"]).given
    assert isinstance(given, RunConfig)
    assert given == load_config(["--n_layer", "3", "--grad_cp", "1"])
