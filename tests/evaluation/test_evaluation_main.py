"""`rwkv-eval`: what it prints and writes, and one line with status 2 for a wrong command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.adapter_files import Adapter, save_adapter
from rwkv_train.evaluation.__main__ import main
from rwkv_train.evaluation.evaluated import open_evaluated
from tests.models.tiny import tiny_model

TEXTS = ["A duck swims on the pond.", "Ice is cold and fire is hot", "One two three four"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an adapter, states, and small files of every kind."""
    made = tmp_path_factory.mktemp("evaluated")
    for name, version in (("one", "6"), ("two", "7")):
        weights = tiny_model(version, vocab_size=257).state_dict()
        torch.save(weights, made / f"{name}.pth")
    states = tiny_model("6", vocab_size=257, options={"train_states": True}).state_dict()
    states = {name: value for name, value in states.items() if "time_state" in name}
    torch.save(states, made / "states.pth")
    pairs = {"blocks.0.att.key": (torch.randn(2, 64), torch.randn(64, 2))}
    save_adapter(made / "a.lora.safetensors", Adapter(1.0, 2, pairs), torch.float32, "one.pth")
    rows = [{"text": text} for text in TEXTS]
    (made / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "text.txt").write_text(TEXTS[0])
    asked = {"question": "A duck is a", "choices": ["bird", "fish"], "answer": 0}
    (made / "asked.jsonl").write_text(json.dumps(asked) + "\n" + json.dumps(asked) + "\n")
    (made / "empty.jsonl").write_text("\n")
    (made / "wrong.jsonl").write_text('{"question": "?", "choices": ["a", "b"], "answer": 7}\n')
    (made / "tasks").mkdir()
    (made / "there.json").write_text("{}")
    return made


@pytest.fixture
def printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the program in the folder, which must succeed; returns what it printed."""
    monkeypatch.chdir(folder)

    def run(line: str) -> str:
        capfd.readouterr()
        assert main(["--load_model", "one.pth", *line.split()]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


def test_all_that_is_measured_is_shown_and_written(
    printed: Callable[..., str], folder: Path, tmp_path: Path
):
    result = tmp_path / "result.json"
    shown = printed(
        f"--text texts.jsonl --compress texts.jsonl text.txt --choices asked.jsonl --last_word "
        f"texts.jsonl --output {result}"
    )
    for words in ("RWKV-6", "bits per byte", "by tokens read before", "acc_norm", "compression, %"):
        assert words in shown
    found = json.loads(result.read_text())
    assert [entry["kind"] for entry in found["results"]] == [
        *("text", "compression", "compression", "compression", "choices", "last_word")
    ]
    text, first, second, mean, asked, words = (e["figures"][0] for e in found["results"])
    assert text["prefix"] == "0" and text["policy"] == {"name": "document"}
    assert text["bytes"] == sum(map(len, TEXTS))
    assert first["policy"] == {"name": "windows", "window": 4000, "stride": 4000}
    # Texts this short fit into one chunk.
    assert first["bits_per_byte"] == pytest.approx(text["bits_per_byte"])
    rates = [first["compression_percent"], second["compression_percent"]]
    assert rates[0] == pytest.approx(12.5 * text["bits_per_byte"])
    assert mean["compression_percent"] == pytest.approx(sum(rates) / 2)
    assert asked["questions"] == 2 and words["texts"] == 3
    assert found["models"][0]["tokenizer"] == "bytes"


def test_the_batch_and_the_prefix_are_what_they_say(printed: Callable[..., str], tmp_path: Path):
    figures = []
    for number, flags in enumerate(("", "--batch_size 1 --chunk_len 5", "--prefix none")):
        result = tmp_path / f"{number}.json"
        printed(f"--text texts.jsonl --choices asked.jsonl {flags} --output {result}")
        (found,) = json.loads(result.read_text())["results"][0]["figures"]
        figures.append(found)
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)
    assert figures[2]["prefix"] == "none" and figures[2]["tokens"] == figures[0]["tokens"] - 3


def test_two_models_are_shown_side_by_side_with_an_interval(
    printed: Callable[..., str], tmp_path: Path
):
    result = tmp_path / "result.json"
    shown = printed(
        f"--compare two.pth --text texts.jsonl --last_word texts.jsonl --output {result}"
    )
    assert "95 % interval" in shown and "RWKV-7" in shown and "3 documents are few" in shown
    text, words = json.loads(result.read_text())["results"]
    first, second = (figures["bits_per_byte"] for figures in text["figures"])
    difference = text["differences"]["bits_per_byte"]
    assert difference["difference"] == pytest.approx(second - first)
    assert difference["low"] <= difference["difference"] <= difference["high"]
    ratio = math.log(words["figures"][0]["perplexity"] / words["figures"][1]["perplexity"])
    assert words["differences"]["log_probability"]["difference"] == pytest.approx(ratio, rel=1e-6)


def test_states_and_adapters_change_what_is_measured(printed: Callable[..., str]):
    plain = printed("--text text.txt").splitlines()[3]
    assert plain.startswith("  bits per byte")
    for flags in ("--load_states states.pth", "--lora a.lora.safetensors"):
        shown = printed(f"--text text.txt {flags}")
        assert f"with {flags.split()[1]}" in shown and plain not in shown


WRONG = {
    "": "nothing to measure",
    "--txt text.txt": "perhaps you meant --text",
    "--text": "--text: expected at least one argument",
    "--text none.txt": "--text none.txt: there is no such file",
    "--text tasks": "tasks is no file",
    "--text -": "- is no file",
    "--text empty.jsonl": "holds no document",
    "--text text.txt --policy windows": "needs --window L",
    "--text text.txt --window 4": "--window 4 belongs to --policy windows",
    "--text text.txt --policy windows --window 4 --stride 9": "--stride 9 must be from 1",
    "--text text.txt --policy sliding": "invalid choice: 'sliding'",
    "--choices asked.jsonl --policy stream": "--policy stream is for --text",
    "--choices texts.jsonl": "texts.jsonl, line 1: 'question' must be a text",
    "--choices wrong.jsonl": "wrong.jsonl, line 1: 'answer' is 7",
    "--choices text.txt": "text.txt holds no JSON",
    "--choices empty.jsonl": "holds no row",
    "--last_word texts.jsonl --text_key words": "'words' must be a text",
    "--compress text.txt --prefix none": "--compress has 0 in front",
    "--text text.txt --limit 0": "--limit 0 must be at least 1",
    "--text text.txt --batch_size few": "invalid int value: 'few'",
    "--text text.txt --prefix 1": "--prefix: invalid choice: '1'",
    "--text text.txt --include tasks": "--include is for --tasks",
    "--text text.txt --compare_lora a.lora.safetensors": "--compare_lora is for --compare",
    "--text text.txt --compare none.pth": "none.pth does not exist",
    "--text text.txt --tokenizer world": "65536",
    "--text text.txt --lora one.pth": "one.pth",
    "--text text.txt --load_states two.pth": "holds more than trained initial states",
    "--text text.txt --output there.json": "there.json exists already",
    "--text text.txt --output none/x.json": "there is no folder none",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_fault_is_one_line_and_status_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str
):
    monkeypatch.chdir(folder)
    capfd.readouterr()
    try:
        status = main(["--load_model", "one.pth", *line.split()])
    except SystemExit as leaving:
        status = leaving.code
    out, err = capfd.readouterr()
    assert status == 2, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert WRONG[line] in err, err
    # Only what is found out when the second model is loaded comes behind a line of the first.
    assert out.count("\n") <= 1, out
    assert (folder / "there.json").read_text() == "{}"


def test_int8_weights_are_the_ones_that_are_measured(folder: Path):
    usual, rounded = (
        open_evaluated(str(folder / "one.pth"), device="cpu", weights=weights)
        for weights in ("float", "int8")
    )
    tokens = torch.tensor([[5, 7, 9]])
    assert not torch.equal(usual.model(tokens)[0], rounded.model(tokens)[0])
    assert rounded.about == {**usual.about, "weights": "int8"}
