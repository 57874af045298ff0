"""rwkv-plan as people and programs use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_train.config.load import dump_config
from rwkv_train.planning.__main__ import main
from rwkv_train.planning.amounts import bytes_written, count_written, duration, gib, short_count
from rwkv_train.planning.cards import GIB
from tests.checkout import ROOT
from tests.planning.imagined import imagined

WRONG = [
    ("--modell 1.5B", "unknown flag --modell; perhaps you meant --model"),
    ("--n_layerr 3", "unknown flag --n_layerr; perhaps you meant --n_layer"),
    ("--model 2.2B", "expected 0.1B, 0.4B, 1.5B, 2.9B, 7.2B, 13.3B; perhaps you meant 7.2B"),
    ("--model 1.5B --n_layer 3", "a published model has its own sizes"),
    ("--model 1.5B --model 3B", "--model is given twice"),
    ("--card 4099", "perhaps you meant 4090"),
    ("--memory 24", "expected a size with its unit, such as 24GB"),
    ("--memory", "--memory needs a value"),
    ("--rate -5", "expected a number above 0"),
    ("--tokens 1e40", "expected a number below 1e+30, such as 300e9 or 300B"),
    ("--price -2", "expected a number above 0, such as 2.5"),
    ("--mttf 5 --restart_seconds x", "expected a number above 0, such as 60"),
    ("--mfu 1.4 --card h100", "at most 1"),
    ("--mfu 0.4", "give --card, or --rate"),
    ("--fit", "--fit 24GB, or --card 4090"),
    ("--fit 24GB --memory 12GB", "leave one out"),
    ("--json=1", "--json takes no value"),
    ("--n_embd 100", "is not a multiple of 32"),
    ("--strategy zero3", "give one of auto, single_device"),
    ("--precision fp16 --accelerator cpu", "needs a GPU"),
    ("--card h100 --accelerator cpu", "a CPU's speed is not predicted"),
    ("--tokens 1B --exit_tokens 5", "are the same budget"),
    ("--load_model X.pth", "train.py --plan 1"),
    ("--n_layer 100000 --n_embd 1000000", "no machine holds tensors of that size"),
    ("--config /nonexistent.yaml", "No such file or directory"),
    ("words", "belongs to no flag"),
]


def printed(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what a command line prints; it must succeed."""
    assert main(line.split()) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def record(line: str, capsys: pytest.CaptureFixture[str]) -> dict:
    """Returns the object that a command line prints with --json."""
    return json.loads(printed(f"{line} --json", capsys))


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_flag_is_told_in_one_line(line: str, words: str, capsys):
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and words in captured.err


def test_a_plan_has_its_sections_in_lines_that_fit_a_terminal(capsys):
    out = printed("--model 1.5B --ctx_len 4096 --card h100 --tokens 300B --price 2", capsys)
    for line in (
        "RWKV-7, 24 layers, width 2048, heads of 64, channel mix 8192, vocabulary 65536",
        "8 x 4,096 tokens = 32,768 a step",
        "bf16 weights with fp32 masters; adamw; single_device",
        "  all                1,527,668,736",
    ):
        assert line in out.splitlines()
    assert "of 80.0 GiB, H100 SXM." in out
    assert max(map(len, out.splitlines())) <= 100
    assert "GPU-hours" in out and "kWh of the cards alone" in out and "at 2 a card and hour" in out


def test_the_object_for_programs_adds_up(capsys):
    found = record("--model 0.4B --card 4090 --tokens 1e9 --price 0.5 --fit", capsys)
    memory = found["memory"]
    assert sum(size for name, size in memory.items() if name != "total") == memory["total"]
    parts = found["flops_per_token"]["parts"].values()
    assert sum(part["forward"] for part in parts) == found["flops_per_token"]["forward"]
    assert found["parameters"]["total"] == 450834432
    assert found["device"]["memory"] == 24 * GIB
    cost = found["cost"]
    assert cost["gpu_hours"] == pytest.approx(cost["tokens"] / cost["tokens_per_second"] / 3600)
    assert cost["money"] == pytest.approx(0.5 * cost["gpu_hours"])
    assert found["fit"] and all(run["memory"] <= 0.9 * 24 * GIB for run in found["fit"])


def test_the_same_defaults_as_train_py_hold(capsys):
    run = record("--model 0.1B", capsys)["run"]
    assert (run["ctx_len"], run["micro_bsz"], run["precision"]) == (1024, 8, "bf16")
    assert record("--model 0.1B --devices 8", capsys)["run"]["strategy"] == "deepspeed_stage_2"
    assert record("--model 0.1B --card t4", capsys)["run"]["precision"] == "fp16"
    assert record("--model 0.1B --my_testing x060", capsys)["model"]["rwkv_version"] == "6"


def test_a_run_is_planned_from_its_own_config(capsys, tmp_path: Path):
    config = imagined("--rwkv_version 6 --n_layer 3 --n_embd 128 --vocab_size 77 --data_file d")
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    found = record(f"--config {tmp_path / 'config.yaml'} --micro_bsz 3", capsys)
    assert (found["model"]["n_layer"], found["model"]["vocab_size"]) == (3, 77)
    assert found["run"]["micro_bsz"] == 3
    assert any("data_file is not opened here" in line for line in found["remarks"])


def test_a_given_mfu_decides_the_time(capsys):
    found = record("--model 1.5B --rwkv_version 4 --card a100 --mfu 0.4 --tokens 1e9", capsys)
    flops = found["flops_per_token"]["model"]
    assert found["tokens_per_second"] == pytest.approx(0.4 * 312e12 / flops)


def test_numbers_of_ones_own_take_the_place_of_a_card(capsys):
    found = record("--model 0.1B --rate 165.2e12 --memory 10GB", capsys)
    named = record("--model 0.1B --card 4090", capsys)
    assert found["step"] == named["step"] and found["device"]["memory"] == 10 * GIB
    assert "in proportion to those of an RTX 4090" in printed("--model 0.1B --rate 1e14", capsys)
    assert record("--model 0.1B --card 4090 --rate 1e14", capsys)["device"]["rate"] == 1e14


def test_what_is_not_used_is_said(capsys):
    out = printed("--model 0.1B --card h100 --price 2", capsys)
    assert "--price: not used, for the tokens of the run are not known." in out
    out = printed("--model 0.1B --card h100 --precision fp32 --mfu 0.3", capsys)
    assert "--mfu: not used, for the speed is not known." in out
    out = printed("--model 0.1B --ds_bucket_mb 7", capsys)
    assert "ds_bucket_mb is not used: strategy single_device" in out


def test_second_copies_and_what_machines_hold_for_their_cards_are_told(capsys):
    line = "--model 0.1B --state_copies /a,partner:/dev/shm/b:keep_last=1 --card h100"
    # 191,084,544 parameters of 12 bytes.
    state = 12 * 191084544
    found = record(f"{line} --num_nodes 2", capsys)
    assert [copy["bytes"] for copy in found["copies"]][1] == 2 * state
    assert found["host_memory"] == {"saves": state // 2, "offloaded": 0}
    out = printed(f"{line} --num_nodes 2", capsys)
    assert "In each machine's own memory: copies that a save writes 1.1 GB." in out
    assert "  partner:/dev/shm/b    4.6 GB  2 states at most" in out
    assert "one machine has no partner" in printed(line, capsys)


def test_what_learns_is_told_where_it_is_not_all(capsys):
    # Rank 4, six matrices of 64 + 64 and two of 64 + 224.
    line = "--rwkv_version 5 --n_layer 1 --n_embd 64 --vocab_size 100 --ctx_len 64 "
    pairs = 4 * (6 * (64 + 64) + 2 * (64 + 224))
    lora = line + "--train_type lora --lora_r 4"
    assert record(lora, capsys)["parameters"]["learnt"] == pairs
    assert f"  that learn          {pairs:,}" in printed(lora, capsys)
    assert "that learn" not in printed(line, capsys)


def test_a_cpu_is_not_told_to_name_a_card(capsys):
    out = printed("--model 0.1B --accelerator cpu", capsys)
    assert "--card" not in out and "--memory 24GB says whether it fits." in out


def test_verdicts_say_how_sure_they_are(capsys):
    total = record("--model 0.1B", capsys)["memory"]["total"] // 2**20

    def verdict(share: float) -> str:
        return printed(f"--model 0.1B --memory {int(total * share)}MiB", capsys)

    assert "\nFits: " in verdict(1.2)
    assert "\nMay fit, or not: " in verdict(1.02)
    assert "\nDoes not fit: " in verdict(0.8) and "--fit searches" in verdict(0.8)
    fits = [record(f"--model 0.1B --memory {int(total * s)}MiB", capsys) for s in (1.2, 1, 0.8)]
    assert [found["device"]["fits"] for found in fits] == [True, None, False]


def test_the_cards_are_listed(capsys):
    out = printed("--cards", capsys)
    assert out.startswith("card ") and "\n  RTX 4090 " in out and "\n  MI300X " in out


def test_help_says_which_flags_there_are(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "--fit [SIZE]" in out and "All flags of train.py are understood" in out


def test_it_answers_without_torch_and_numpy():
    code = (
        "import sys; from rwkv_train.planning.__main__ import main; "
        "status = main('--model 7.2B --card h100 --nodes 8 --fit --mttf 9'.split()); "
        "sys.exit(status or any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * GIB), ("24 GiB", 24 * GIB), ("1.5t", 1536 * GIB)]
)
def test_sizes_are_read_as_on_the_boxes_of_cards(text: str, size: int):
    assert bytes_written("memory", text) == size


def test_numbers_are_read_and_written_in_short():
    assert count_written("tokens", "300B") == count_written("tokens", "3e11") == 3e11
    assert [short_count(n) for n in (999, 1527668736, 2.5e14)] == ["999", "1.53 B", "250 T"]
    assert [gib(n) for n in (21.3 * GIB, 2**20)] == ["21.3 GiB", "1.0 MiB"]
    assert [duration(s) for s in (0.0241, 3.131, 200, 9000, 1e6)] == [
        *("24.1 ms", "3.13 s", "3.3 minutes", "2.5 hours", "11.6 days")
    ]


def test_the_document_shows_the_table_of_cards_as_it_is(capsys):
    text = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    assert printed("--cards", capsys) in text
