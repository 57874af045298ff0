"""`rwkv-chat` in a pipe: answers on standard output, all else on standard error."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.inference.chat import chat_settings
from rwkv_train.inference.chat.__main__ import main
from tests.inference.chat.scripted import BYTES, Recited
from tests.models.tiny import tiny_model

ECHO = [" Hello.\n\n", " Good.\n\n", " Bye.\n\n", " More.\n\n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level RWKV-7 with random weights."""
    path = tmp_path_factory.mktemp("models") / "rwkv-final.pth"
    torch.save(tiny_model("7", vocab_size=257, n_embd=32).state_dict(), path)
    return path


@pytest.fixture
def chat(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the program with these lines; the model answers with the texts of `answers` in turn."""

    def run(lines: str, *argv: object, answers: list[str] | None = ECHO) -> tuple[int, str, str]:
        if answers is not None:
            script = Recited([token for text in answers for token in BYTES.encode(text)])
            monkeypatch.setattr(chat_settings.ChatSettings, "next_sampler", lambda self: script)
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capfd.readouterr()
        status = main(["--load_model", str(model), *map(str, argv)])
        return status, *capfd.readouterr()

    return run


def test_answers_alone_go_to_standard_output(chat):
    assert chat("Hi\n\nHow are you?\n") == (0, "Hello.\nGood.\n", "")
    # Nothing behind /exit is read.
    assert chat("Hi\n/exit\nmore\n")[1] == "Hello.\n"
    assert chat("") == (0, "", "")


def test_lines_are_joined_and_slashes_doubled(chat, tmp_path: Path):
    lines = 'a\\\nb\n//c\n"""\nd\n\n  e\n"""\n/save s.state\n'
    lines = lines.replace("s.state", str(tmp_path / "s.state"))
    assert chat(lines)[0] == 0
    from safetensors import safe_open

    with safe_open(tmp_path / "s.state", framework="pt") as file:
        rounds = json.loads(file.metadata()["rwkv_train"])["about"]["chat"]["rounds"]
    assert [one["question"]["content"] for one in rounds] == ["a\nb", "/c", "d\n\n  e"]
    asked = bytes(token - 1 for token in rounds[2]["question_tokens"]).decode()
    assert asked == "\n\nUser: d\n  e\n\nAssistant:"


def test_commands_change_what_the_next_answer_follows(chat):
    status, out, err = chat("one\n/retry\n/undo\n/undo\n", answers=[" a\n\n", " b\n\n"])
    assert (status, out) == (2, "a\nb\n")
    assert err == "taken back: one\nerror: there is no message to take back\n"
    status, out, err = chat("/system Be brief.\nHi\n/system\n/reset\n/state\n/think\n/calls\n")
    assert (status, out) == (0, "Hello.\n")
    assert err.splitlines() == [
        "the conversation begins anew, with this text of the system",
        "Be brief.",
        "the conversation is forgotten",
        "0 rounds, 0 tokens read; the state has 0.0087 MB, whatever the length",
        "think off; temperature 1, top_p 0.5, top_k 0, presence_penalty 0.5, frequency_penalty "
        "0.2, penalty_decay 0.996, max_tokens 2000",
        "calls off",
    ]


def test_a_kept_conversation_goes_on(chat, tmp_path: Path):
    path = tmp_path / "talk.state"
    assert chat(f"Hi\n/save {path}\n")[2] == f"saved to {path}\n"
    status, out, err = chat("/state\n/retry\n/continue\n/undo\n/undo\n", "--load", path)
    # What goes on behind the answer's end is the end of an answer once more.
    assert (status, out) == (2, "Hello.\nGood.\n")
    assert err.splitlines()[:2] == [
        f"{path}: 1 round",
        "1 round, 27 tokens read; the state has 0.0087 MB, whatever the length",
    ]


def test_think_changes_beginning_and_sampling_and_a_retry_follows(chat):
    answers = [" a\n\n", ">hm</think>\nb\n\n"]
    status, out, err = chat("/set top_p 0.4\none\n/think a bit\n/retry\n/set\n", answers=answers)
    assert (status, out) == (0, "a\n<think>hm</think>\nb\n")
    assert err.splitlines()[-1].startswith("think a bit; temperature 0.3, top_p 0.4, top_k 0")


def test_functions_are_called_as_the_file_says(chat, tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "sky", "parameters": {}}}]
    (tmp_path / "t.json").write_text(json.dumps(tools))
    answers = ["\n{}\n```", " Blue.\n\n"]
    lines = "weather?\n/tool {}\n/system\n"
    _, out, err = chat(lines, "--tools", tmp_path / "t.json", "--system", "S", answers=answers)
    assert out == "```json\n{}\n```\nBlue.\n"
    assert err == 'S\nTools:\n[\n{"name":"sky"}\n]\nReturn only a JSON function call.\n'


def test_a_long_answer_is_cut_and_a_missing_one_told(chat):
    _, out, err = chat("Hi\n/continue\n", "--max_tokens", 4, answers=[" abcdef\n\n"])
    assert (out, err) == ("abc\ndef\n\n", "4 tokens were written; /continue goes on\n" * 2)
    _, out, err = chat("Hi\nHo\n", answers=["\n\n", " yes\n\n"])
    assert out == "\nyes\n"
    assert err.splitlines() == [
        "no answer came; /retry, or write another message",
        "the message before, which has no answer, is taken back",
    ]


def test_a_seed_repeats_a_chat(chat):
    def answers(seed: int) -> str:
        status, out, _ = chat("a\nb\n", "--seed", seed, "--max_tokens", 9, answers=None)
        assert status == 0
        return out

    assert answers(1) == answers(1) != answers(2)


def test_help_names_every_command(chat):
    _, _, err = chat("/help\n")
    names = "retry continue undo reset system think tool calls set save load state help exit"
    assert [line.split()[0] for line in err.splitlines()[:14]] == [f"/{n}" for n in names.split()]
    assert all(len(line) < 80 for line in err.splitlines())
