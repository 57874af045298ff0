"""rwkv-plan for machines that fail, as people and programs use it."""

from __future__ import annotations

import pytest

from rwkv_train.planning.__main__ import main
from tests.planning.test_plan_program import printed, record

WRONG = [
    ("--disk_bandwidth 2", "--disk_bandwidth is about machines that fail: give --mttf HOURS"),
    ("--spare_nodes 1", "give --mttf HOURS"),
    ("--mttf -3 --card h100", "expected a number above 0"),
    ("--mttf soon --card h100", "expected a number above 0"),
    ("--mttf 0.001 --card h100", "machines that fail every 3.6 s; expected hours, 0.01 at least"),
    ("--mttf 1000", "--mttf needs the speed of a run: give --card NAME"),
    ("--mttf 1000 --card h100 --precision fp32", "needs the speed of a run"),
    ("--mttf 9 --card h100 --min_nodes 0", "--min_nodes 0: a run needs one machine"),
    ("--mttf 9 --card h100 --nodes 4 --min_nodes 5", "is more than the 4 there are"),
    ("--mttf 9 --card h100 --spare_nodes 1.5", "expected a whole number"),
    ("--mttf 9 --card h100 --restart_seconds -1", "expected a number above 0"),
    ("--mttf 9 --card h100 --storage_bandwidth 0", "expected a number above 0"),
    ("--nodes 4 --num_nodes 4", "--nodes and --num_nodes say the same; give one"),
    ("--devices 4 --gpus_per_node 4", "--gpus_per_node and --devices say the same; give one"),
    ("--nodes 4 --nodes 4", "--nodes is given twice"),
    ("--nodes 0", "num_nodes 0"),
    ("--nodes 100001", "num_nodes 100001: must be at most 100000"),
    ("--nodes", "--nodes needs a value"),
    ("--link_bandwidth 300", "--link_bandwidth 300: give --card, or --rate, too"),
    ("--node_bandwidth 0 --card h100", "expected a number above 0"),
    ("--mtf 9", "perhaps you meant --mttf"),
]
CLUSTER = "--model 1.5B --card h100 --micro_bsz 8 --ctx_len 4096 --gpus_per_node 8 "


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_flag_is_told_in_one_line(line: str, words: str, capsys):
    assert main(["--model", "0.1B", *line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert words in captured.err


def test_the_life_of_a_run_is_made_of_what_the_machines_take(capsys):
    found = record(
        CLUSTER + "--nodes 16 --mttf 800 --disk_bandwidth 1 --storage_bandwidth 4 "
        "--restart_seconds 90 --detect_seconds 0 --save_every_steps 100",
        capsys,
    )
    cycle, state = found["cluster"]["cycle"], found["files"]["state"]
    # 12 bytes a parameter.
    assert state == 12 * 1527668736
    assert cycle["between_failures"] == 800 * 3600 / 16
    assert cycle["step"] == pytest.approx(found["step"]["seconds"])
    # The storage's 4 GB/s, not 16 disks of 1; out of the cards at 25 GB/s each.
    assert cycle["save_write"] == pytest.approx(state / 4e9)
    assert cycle["save_pause"] == pytest.approx(state / 128 / 25e9)
    assert cycle["reload"] == pytest.approx(cycle["save_write"] + cycle["save_pause"])
    assert (cycle["restart"], cycle["detect"]) == (90, 0)
    assert found["cluster"]["own"]["steps"] == 100
    for outcome in (found["cluster"]["own"], found["cluster"]["best"]):
        assert sum(outcome["shares"].values()) == pytest.approx(1)
        spent = outcome["simulated"]["spent"]
        assert sum(spent.values()) == pytest.approx(outcome["simulated"]["seconds"])
        # Over a thousand failures.
        assert outcome["simulated"]["goodput"] == pytest.approx(outcome["pace"], abs=0.002)
    assert found["cluster"]["best"]["pace"] >= found["cluster"]["own"]["pace"]


def test_the_tokens_of_a_run_take_so_much_longer_as_goodput_is_lost(capsys):
    found = record(CLUSTER + "--nodes 16 --mttf 100 --tokens 300B --restart_seconds 600", capsys)
    own = found["cluster"]["own"]
    assert 0.5 < own["pace"] < 0.98
    assert own["run_seconds"] == pytest.approx(found["cost"]["seconds"] / own["pace"])
    assert own["simulated"]["runs"] > 1
    assert own["simulated"]["lowest"] < own["simulated"]["goodput"] < own["simulated"]["highest"]
    out = printed(
        CLUSTER + "--nodes 16 --mttf 100 --tokens 300B --restart_seconds 600 --price 2", capsys
    )
    hours = 128 * own["run_seconds"] / 3600
    assert f"{hours:,.0f} GPU-hours, {2 * hours:,.2f} at 2 an hour" in out


def test_the_section_says_what_a_failure_and_a_save_cost_in_lines_that_fit_a_terminal(capsys):
    for more in ("", "--repair_minutes 240", "--repair_minutes 240 --spare_nodes 12 --min_nodes 8"):
        out = printed(f"{CLUSTER}--nodes 128 --mttf 1000 --tokens 300B --price 2 {more}", capsys)
        assert max(map(len, out.splitlines())) <= 100
        assert "on 128 machines of 8 cards: one fails every 7.8 hours, each every 41.7 days" in out
        assert "Of 127 machines only 64 can keep the batch: it divides among no more." in out
        assert "\nSimulated, the best: goodput " in out
        assert "\n  one process writes the whole state " in out


def test_a_run_that_goes_on_with_fewer_machines_is_as_slow_as_those(capsys):
    line = CLUSTER + "--nodes 12 --micro_bsz 4 --mttf 300 --repair_minutes 600 "
    waits = record(line, capsys)["cluster"]
    goes_on = record(line + "--min_nodes 8", capsys)["cluster"]
    spare = record(line + "--spare_nodes 4", capsys)["cluster"]
    # Of 12 x 8 x 4 samples eleven machines of 8 cannot have equal parts, eight can.
    assert waits["next_smaller"] == 8
    assert waits["formula_holds"] and waits["down"] == 36000 - 15
    assert waits["best"]["shares"]["down"] > 0.2
    assert waits["best"]["pace"] < goes_on["best"]["pace"] < spare["best"]["pace"]
    assert goes_on["best"]["simulated"]["goodput"] > 0.95 > goes_on["best"]["pace"]
    assert not goes_on["formula_holds"] and not spare["formula_holds"]


def test_without_failures_there_is_no_best_interval_and_nothing_is_lost(capsys):
    line = CLUSTER + "--nodes 2 --mttf inf "
    found = record(line, capsys)["cluster"]
    assert found["best"] is None and found["cycle"]["between_failures"] is None
    assert found["own"]["simulated"]["failures"] == 0
    assert found["own"]["shares"]["lost"] == pytest.approx(0, abs=1e-12)
    out = printed(line, capsys)
    assert "on 2 machines of 8 cards: no machine fails" in out


def test_a_run_that_never_saves_is_told_when_it_could(capsys):
    line = CLUSTER + "--mttf 1000 --save_every_minutes 0 --epoch_save 0"
    found = record(line, capsys)["cluster"]
    assert found["own"] is None and found["best"] is not None
    assert "The run never saves: --save_every_minutes" in printed(line, capsys)


def test_failures_sooner_than_a_restart_are_called_no_progress(capsys):
    out = printed(CLUSTER + "--nodes 1000 --mttf 20", capsys)
    assert "No progress to speak of: a recovery and a save take 2.3 minutes" in out
    assert "failure comes every 72 s" in out
    assert "No progress" not in printed(CLUSTER + "--nodes 1000 --mttf 1000", capsys)


def test_one_machine_and_a_thousand_are_planned(capsys):
    one = printed(CLUSTER + "--mttf 1000", capsys)
    assert "on 1 machine of 8 cards" in one and "can keep the batch" not in one
    thousand = record(CLUSTER + "--nodes 1000 --mttf 1000", capsys)
    assert thousand["run"]["devices"] == 8000
    assert thousand["cluster"]["best"]["seconds"] < 60


def test_the_links_that_are_given_are_those_that_gradients_wait_for(capsys):
    line = CLUSTER + "--nodes 4 --micro_bsz 1 "
    fast, slow = (
        record(f"{line}--node_bandwidth {giga}", capsys)["step"]["links"] for giga in (400, 25)
    )
    assert slow > 5 * fast
    # All weights come back after the step; of the gradients at most as much is waited for.
    weights = 2 * 1527668736 * 31 / 32 / 25e9
    assert weights < slow < 2.1 * weights
    # Without adapters between them, the link inside: 7 of 8 parts of 3.06 GB at 10 GB/s, ZeRO-2's
    # weights alone being waited for in full.
    alone = record(CLUSTER + "--link_bandwidth 10", capsys)["step"]["links"]
    assert alone == pytest.approx(2 * 1527668736 * 7 / 8 / 10e9, rel=0.01)
