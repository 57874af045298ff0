"""A run that cannot fit is refused before it allocates, with changes of flags that fit."""

from __future__ import annotations

import re
import shlex

import pytest

from rwkv_train.errors import ConfigError
from rwkv_train.planning.memory import memory_plan
from rwkv_train.training.start import check_memory as module
from rwkv_train.training.start.check_memory import check_memory
from rwkv_train.training.start.memory_limits import MemoryLimit
from tests.config.resolving import resolved

GB = 10**9
MODEL = "--rwkv_version 7 --n_layer 6 --n_embd 512 --vocab_size 65536 --accelerator cpu"
LARGE = f"{MODEL} --micro_bsz 16 --ctx_len 1024"


def config_of(line):
    return resolved(line)[0]


@pytest.fixture
def machine(monkeypatch):
    """Sets the memory there is, in bytes; None: nobody tells."""

    def has(free, **options):
        settings = {"name": "this machine", "is_shared": True, **options}
        found = [] if free is None else [MemoryLimit(int(free), **settings)]
        monkeypatch.setattr(module, "host_limits", lambda processes: found)

    return has


def refusal(line):
    with pytest.raises(ConfigError) as caught:
        check_memory(config_of(line))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_change_that_a_refusal_names_fits(machine):
    machine(3.5 * GB)
    words = refusal(LARGE)
    assert "this machine leaves 3.5 GB" in words and "activations" in words
    changes = re.findall(r"(?:take|or) (--[^(]*) \(", words)
    assert len(changes) == 3
    for flags in changes:
        assert check_memory(config_of(f"{LARGE} {flags}")).note() == []
    # The same samples a step, where the batch is cut.
    sizes = [dict(zip(*[iter(shlex.split(flags))] * 2)) for flags in changes]
    for given in sizes:
        batch = int(given.get("--micro_bsz", 16)) * int(given.get("--accumulate_grad_batches", 1))
        assert batch == 16


def test_what_no_change_makes_fit_needs_another_model(machine):
    machine(0.5 * GB)
    assert "take a smaller model; --skip_memory_check 1 starts all the same" in refusal(LARGE)
    # Initial weights alone: 88 M in fp32.
    machine(0.3 * GB)
    assert "take a smaller model" in refusal(f"{MODEL} --train_stage 1")


def test_the_user_may_start_all_the_same(machine):
    machine(0.5 * GB)
    forecast = check_memory(config_of(f"{LARGE} --skip_memory_check 1"))
    assert "memory may not suffice" in forecast.note()[0]


@pytest.mark.parametrize(("factor", "ends"), [(1.2, "silent"), (1.0, "told"), (0.85, "refused")])
def test_what_is_within_the_error_of_the_plan_is_told_and_not_refused(machine, factor, ends):
    line = f"{LARGE} --save_in_background 0"
    machine(factor * memory_plan(config_of(line)).total)
    if ends == "refused":
        refusal(line)
    else:
        assert bool(check_memory(config_of(line)).note()) == (ends == "told")


def test_copies_of_saves_refuse_nothing_since_a_short_run_has_none(machine):
    plans = [memory_plan(config_of(f"{LARGE} --save_in_background {on}")) for on in (0, 1)]
    assert plans[1].total > 1.05 * plans[0].total
    machine(plans[0].total)
    assert check_memory(config_of(LARGE)).note()


def test_processes_share_the_machine_but_not_a_limit_of_each(machine):
    line = f"{LARGE} --devices 4 --save_in_background 0"
    each = memory_plan(config_of(line)).total
    machine(2 * each)
    assert "in each of 4 processes" in refusal(line)
    machine(2 * each, is_shared=False, name="ulimit -v 1")
    check_memory(config_of(line))


def test_copies_count_in_every_process_that_writes_its_part_and_else_in_the_first(machine):
    line = f"{LARGE} --devices 4 --strategy ddp --skip_memory_check 1"
    waits = memory_plan(config_of(f"{line} --save_in_background 0")).total
    parts = memory_plan(config_of(line)).total
    first = memory_plan(config_of(f"{line} --state_format file")).total
    assert waits < parts < first
    machine(10 * GB)
    assert check_memory(config_of(line)).share() == pytest.approx(4 * parts / (10 * GB))
    alone = check_memory(config_of(f"{line} --state_format file")).share()
    assert alone == pytest.approx((first + 3 * waits) / (10 * GB))


def test_what_a_run_takes_of_the_machine_is_nothing_on_cards_and_by_force(machine):
    machine(10 * GB)
    line = f"{LARGE} --devices 4 --strategy ddp --skip_memory_check"
    waits = memory_plan(config_of(f"{line} 0 --save_in_background 0")).total
    machine(8 * waits)
    assert check_memory(config_of(f"{line} 0")).on_host() == 4 * waits
    assert check_memory(config_of(f"{line} 1")).on_host() == 0


def test_libraries_do_not_count_against_addresses_a_second_time(machine):
    line = f"{LARGE} --save_in_background 0"
    plan = memory_plan(config_of(line))
    machine(1.2 * plan.allocated, is_shared=False, counts_addresses=True)
    forecast = check_memory(config_of(line))
    assert forecast.note() == [] and "slack" not in forecast.line()


def test_a_model_that_is_far_too_large_is_refused_with_the_figures(machine):
    machine(23 * GB)
    words = refusal("--n_layer 61 --n_embd 4096 --vocab_size 65536 --accelerator cpu")
    assert "--n_layer 61 --n_embd 4096 --dim_ffn 16384 --vocab_size 65536" in words
    assert re.search(r"1\d,\d{3}\.\d M parameters need \d{3}\.\d GB", words)
    machine(None)
    check_memory(config_of("--n_layer 61 --n_embd 4096 --vocab_size 65536 --accelerator cpu"))


@pytest.mark.parametrize(
    "line",
    ["--vocab_size 10000000000000000000", "--n_embd 1099511627776", f"--vocab_size {10**18}"],
)
def test_tensors_beyond_64_bits_are_refused_by_their_sizes(line, machine):
    machine(None)
    words = refusal(f"--n_layer 1 --n_embd 64 --vocab_size 65536 --accelerator cpu {line}")
    assert re.search(r"--n_layer 1 --n_embd .* no memory holds tensors", words)


def test_a_batch_that_no_memory_holds_is_refused(machine):
    machine(10**10)
    line = "--n_layer 1 --n_embd 64 --vocab_size 65536 --accelerator cpu --micro_bsz 1099511627776"
    assert "--micro_bsz 1099511627776 --ctx_len" in refusal(line)
