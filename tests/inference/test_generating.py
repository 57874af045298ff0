"""`rwkv-generate` with files of prompts, stop texts, states, and JSON out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.inference.__main__ import main
from tests.models.tiny import tiny_model

SEEDED = ("--seed", 3, "--max_tokens", 12, "--top_p", 0.95)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level RWKV-7 with random weights."""
    path = tmp_path_factory.mktemp("models") / "rwkv-final.pth"
    torch.save(tiny_model("7", vocab_size=257).state_dict(), path)
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], model: Path) -> Callable[..., tuple[str, str]]:
    """Runs the program, which must succeed; returns what it printed on both streams."""

    def call(*argv: object) -> tuple[str, str]:
        capfd.readouterr()
        assert main(["--load_model", str(model), *map(str, argv)]) == 0
        return tuple(capfd.readouterr())

    return call


def records(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_file_of_prompts_gives_a_line_of_json_for_every_text(run, tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Grüße"}\n\n{"text": "a\\nb"}\n')
    options = (*SEEDED, "--samples", 2, "--jsonl", "--prompts", tmp_path / "p.jsonl")
    out, err = run(*options)
    found = records(out)
    assert [(r["prompt"], r["index"], r["seed"]) for r in found] == [
        ("Grüße", 0, 3),
        ("Grüße", 1, 3),
        ("a\nb", 2, 3),
        ("a\nb", 3, 3),
    ]
    assert len({r["text"] for r in found}) == 4 and err == ""
    assert all(r["tokens"] == 12 and r["reason"] == "length" for r in found if r["reason"] != "end")
    # The same in batches of another size, and alone.
    assert run(*options, "--batch", 1)[0] == out and run(*options, "--batch", 3)[0] == out
    assert run(*SEEDED, "Grüße")[0] == f"Grüße{found[0]['text']}\n"


def test_a_text_file_holds_a_prompt_a_line(run, tmp_path: Path):
    (tmp_path / "p.txt").write_bytes(b"one\r\n\ntwo\n")
    out, _ = run("--max_tokens", 0, "--prompts", tmp_path / "p.txt")
    assert out == "--- prompt 1 ---\none\n--- prompt 2 ---\ntwo\n"


def test_without_a_seed_the_one_that_was_drawn_repeats_the_text(run):
    (first,) = records(run("--max_tokens", 9, "--jsonl", "x")[0])
    (again,) = records(run("--max_tokens", 9, "--jsonl", "--seed", first["seed"], "x")[0])
    assert first == again


def test_a_stop_text_ends_the_text_before_it(run):
    (whole,) = records(run(*SEEDED, "--jsonl", "x")[0])
    stop = whole["text"][4:6]
    (cut,) = records(run(*SEEDED, "--jsonl", "--stop", "never\\n", "--stop", stop, "x")[0])
    assert cut["text"] == whole["text"].partition(stop)[0] and cut["reason"] == "stop"


def test_a_saved_state_goes_on_as_the_whole_text_would(run, tmp_path: Path):
    state = tmp_path / "a.state"
    whole, _ = run(*SEEDED, "one two three")
    assert run("--max_tokens", 0, "--save_state", state, "one two")[0] == "one two\n"
    # Written over, for it is a state.
    run("--max_tokens", 0, "--load_state", state, "--save_state", state, " three")
    assert f"one two three{run(*SEEDED, '--load_state', state)[0]}" == whole
    # The state behind a text is that of prompt and text.
    run(*SEEDED, "--save_state", state, "one two three")
    after, _ = run(*SEEDED, "--load_state", state)
    assert after == run(*SEEDED, whole[:-1])[0][len(whole) - 1 :]


def test_the_speed_of_both_halves_is_told(run):
    _, err = run("--speed", "--max_tokens", 5, "--temperature", 0, "abcdef")
    rate = r"in [\d.]+ s, [\d.]+ tokens/s"
    assert re.fullmatch(rf"speed: prefill 6 tokens {rate}; decode \d tokens {rate}\n", err)
