"""`python generate.py`: what it prints, and one line with status 2 when it cannot."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train import find_gpus
from rwkv_train.errors import ConfigError
from rwkv_train.find_gpus import FoundGpus
from rwkv_train.inference.__main__ import generate_parser, main
from rwkv_train.inference.machine import device_and_precision
from tests.checkout import ROOT
from tests.models.tiny import VERSIONS, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level RWKV-6 with random weights."""
    path = tmp_path_factory.mktemp("models") / "rwkv-final.pth"
    torch.save(tiny_model("6", vocab_size=257).state_dict(), path)
    return path


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the program, which must succeed; returns what it printed."""

    def run(*argv: object) -> str:
        capfd.readouterr()
        assert main([str(word) for word in argv]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


def test_the_prompt_and_its_continuation_are_printed(printed: Callable[..., str], model: Path):
    text = printed("--load_model", model, "--max_tokens", 20, "--seed", 1, "Grüße")
    assert text.startswith("Grüße") and text.endswith("\n")
    assert len(text) > len("Grüße\n")


def test_a_seed_repeats_the_text(printed: Callable[..., str], model: Path):
    options = ("--load_model", model, "--max_tokens", 30)
    assert printed(*options, "--seed", 5, "a") == printed(*options, "--seed", 5, "a")
    assert printed(*options, "--seed", 5, "a") != printed(*options, "--seed", 6, "a")
    assert printed(*options, "a") != printed(*options, "a")


def test_several_samples_are_numbered(printed: Callable[..., str], model: Path):
    text = printed("--load_model", model, "--max_tokens", 5, "--samples", 2, "--seed", 1, "ab")
    first, second = text.split("--- sample 2 ---\n")
    assert first.startswith("--- sample 1 ---\nab") and second.startswith("ab")


def test_the_prompt_can_come_from_standard_input(
    printed: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("piped"))
    assert printed("--load_model", model, "--max_tokens", 0, "-") == "piped\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_generates(printed: Callable[..., str], tmp_path: Path, version: str):
    path = tmp_path / "model.pth"
    torch.save(tiny_model(version, vocab_size=257).state_dict(), path)
    options = ("--load_model", path, "--max_tokens", 8, "--temperature", 0, "x")
    assert printed(*options) == printed(*options, "--wkv_backend", "reference")


WRONG = {
    "nothing": ([], ["--load_model"]),
    "an unknown option": (["--load_model", "{model}", "--heat", "3"], ["--heat"]),
    "a text for a number": (["--load_model", "{model}", "--top_k", "few"], ["--top_k", "few"]),
    "no such file": (["--load_model", "{model}.pt"], ["rwkv-final.pth.pt", "does not exist"]),
    "a folder": (["--load_model", "{folder}"], ["folder", ".pth"]),
    "no checkpoint": (["--load_model", "{text}"], ["text.pth"]),
    "too hot": (["--load_model", "{model}", "--temperature", "-1"], ["--temperature -1", "0"]),
    "no samples": (["--load_model", "{model}", "--samples", "0"], ["--samples 0", "at least 1"]),
    "another tokenizer": (
        ["--load_model", "{model}", "--tokenizer", "world"],
        ["world", "65536", "257"],
    ),
    "no tokenizer": (["--load_model", "{model}", "--tokenizer", "x.json"], ["x.json"]),
    "an unknown backend": (
        ["--load_model", "{model}", "--wkv_backend", "magic"],
        ["magic", "chunked"],
    ),
    "an unknown device": (["--load_model", "{model}", "--device", "tpu"], ["--device", "cpu"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_one_line_and_status_2(
    capfd: pytest.CaptureFixture[str], model: Path, tmp_path: Path, name: str
):
    flags, words = WRONG[name]
    text = tmp_path / "text.pth"
    text.write_text("no weights\n" * 99)
    places = {"model": model, "folder": tmp_path, "text": text}
    capfd.readouterr()
    try:
        status = main([flag.format(**places) for flag in flags])
    except SystemExit as leaving:
        status = leaving.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_line_and_status_2(model: Path):
    done = subprocess.run(
        [sys.executable, "generate.py", "--load_model", str(model), "--device", "cuda"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --device cuda") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("given", [False, True])
def test_a_model_of_characters_writes_by_the_vocabulary_beside_it(
    printed: Callable[..., str], tmp_path: Path, given: bool, encoding: str
):
    characters = "\n aelßüGΩ"
    path = tmp_path / "rwkv-0.pth"
    torch.save(tiny_model("4", vocab_size=len(characters)).state_dict(), path)
    vocabulary = (tmp_path / "elsewhere" if given else tmp_path) / "vocab.json"
    vocabulary.parent.mkdir(exist_ok=True)
    vocabulary.write_text(json.dumps(dict(enumerate(characters))), encoding=encoding)
    options = ["--tokenizer", vocabulary] if given else []
    text = printed("--load_model", path, "--max_tokens", 40, "--seed", 3, *options, "Gaß")
    # id 0 is a character like the others and ends nothing
    assert text.startswith("Gaß") and len(text) == 3 + 40 + 1 and set(text) <= set(characters)


def test_a_prompt_of_other_characters_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "rwkv-0.pth"
    torch.save(tiny_model("4", vocab_size=2).state_dict(), path)
    (tmp_path / "vocab.json").write_text('{"0": "a", "1": "b"}')
    assert main(["--load_model", str(path), "abc"]) == 2
    assert "the character 'c' did not occur" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"0": "ab"}', '{"x": "a"}', '{"-1": "a"}'])
def test_another_file_of_that_name_is_no_vocabulary(tmp_path: Path, capsys, content: str):
    path = tmp_path / "rwkv-0.pth"
    torch.save(tiny_model("4", vocab_size=2).state_dict(), path)
    (tmp_path / "vocab.json").write_text(content)
    assert main(["--load_model", str(path), "abc"]) == 2
    assert "no tokenizer is known" in capsys.readouterr().err


def chosen(*words: str) -> tuple[str, str]:
    given = generate_parser().parse_args(["--load_model", "x", *words])
    return device_and_precision(given.device, given.precision)


@pytest.mark.parametrize("own, expected", [(True, "bf16"), (False, "fp16")])
def test_a_gpu_before_ampere_generates_in_fp16(monkeypatch, own: bool, expected: str):
    monkeypatch.setattr(find_gpus, "find_gpus", lambda: FoundGpus(count=1, has_bf16=own))
    assert chosen() == ("cuda", expected)
    assert chosen("--precision", "bf16") == ("cuda", "bf16")
    assert chosen("--device", "cpu") == ("cpu", "fp32")


def test_a_card_that_cannot_be_used_is_no_reason_for_the_cpu(monkeypatch):
    monkeypatch.setattr(find_gpus, "find_gpus", lambda: FoundGpus(fault="too old; update it"))
    with pytest.raises(ConfigError, match=r"--device auto: too old; .* or give --device cpu"):
        chosen()
    assert chosen("--device", "cpu", "--precision", "bf16") == ("cpu", "bf16")
