"""Wrong command lines of rwkv-generate and rwkv-chat: one clear line, status 2, nothing lost."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from rwkv_train.inference.__main__ import main as generate
from rwkv_train.inference.chat.__main__ import main as chat
from tests.models.tiny import tiny_model

M = "--load_model {model}"
GENERATE = {
    "prompt and file": (f"{M} --prompts {{txt}} hello", ["a prompt and --prompts"]),
    "no prompts": (f"{M} --prompts {{empty}}", ["empty.txt", "no prompt"]),
    "missing prompts": (f"{M} --prompts gone.txt", ["gone.txt", "No such file"]),
    "a folder of prompts": (f"{M} --prompts {{folder}}", ["Is a directory"]),
    "prompts of another kind": (f"{M} --prompts {{jsonl}}", ["p.jsonl, line 2", "'prompt'", "who"]),
    "an empty stop text": (f"{M} --stop= x", ["--stop", "empty"]),
    "no batch": (f"{M} --batch 0 x", ["--batch 0", "at least 1"]),
    "a misspelt flag": (f"{M} --prompt_file x", ["--prompt_file"]),
    "states of many": (f"{M} --samples 2 --save_state {{folder}}/s x", ["--save_state", "one"]),
    "another file": (f"{M} --save_state {{txt}} x", ["p.txt", "not written over"]),
    "no such folder": (f"{M} --save_state {{folder}}/no/s x", ["is no folder"]),
    "a folder of states": (f"{M} --load_state {{folder}} x", ["is a folder"]),
    "a gap": ("--load_model {gap} x", ["missing: blocks.1.att.r_k", "no flag mends that"]),
    "no state": (f"{M} --load_state {{txt}} x", ["p.txt", "no state of a sequence"]),
    "states for a state": (f"{M} --load_state {{model}} x", ["rwkv-final.pth", "no state"]),
    "another model's": (f"{M} --load_state {{other}} x", ["other.state", "another model"]),
    "no adapter": (f"{M} --lora {{model}} x", ["rwkv-final.pth", "no low-rank adapter"]),
    "a missing adapter": (f"{M} --lora gone.safetensors x", ["gone.safetensors", "not exist"]),
    "a negative seed": (f"{M} --seed -1 x", ["--seed -1", "between 0"]),
    "no penalty": (f"{M} --presence_penalty nan x", ["--presence_penalty nan", "between -100"]),
    "an unknown order": (f"{M} --sampling_order both x", ["both", "top_p"]),
}
CHAT = {
    "no model": ("", "", ["--load_model"]),
    "an unknown thought": (f"{M} --think deeply", "", ["think 'deeply'", "a lot"]),
    "no tokens": (f"{M} --max_tokens 0", "", ["--max_tokens 0", "at least 1"]),
    "too hot": (f"{M} --temperature 900", "", ["--temperature 900"]),
    "no template": (f"{M} --chat_template gone.yaml", "", ["gone.yaml", "world"]),
    "no tools": (f"{M} --tools {{empty}}", "", ["empty.txt", "no function"]),
    "no conversation": (f"{M} --load {{plain}}", "", ["plain.state", "without a conversation"]),
    "two systems": (f"{M} --load {{talk}} --system S", "", ["--load", "leave --system"]),
    "another template": (f"{M} --load {{talk}} --chat_template {{yaml}}", "", ["template"]),
    "an unknown command": (M, "/rety\n", ["/rety", "perhaps you meant /retry"]),
    "a command without a file": (M, "/save\n", ["/save needs FILE"]),
    "a command with too much": (M, "/undo 3\n", ["/undo takes nothing", "3"]),
    "nothing to retry": (M, "/retry\n", ["no message to answer"]),
    "nothing to continue": (M, "/continue\n", ["no answer to continue"]),
    "nothing to save": (M, "/save {folder}/x\n", ["nothing to save"]),
    "an unknown setting": (M, "/set heat 3\n", ["heat", "temperature"]),
    "no number": (M, "/set top_k few\n", ["top_k", "few"]),
    "out of range": (M, "/set top_p 3\n", ["/set top_p 3", "between 0 and 1"]),
    "no finite penalty": (M, "/set frequency_penalty inf\n", ["/set frequency_penalty inf"]),
    "an open message": (M, '"""\nabc\n', ['"""', "no such line"]),
    "no text": (M, "\udcff\n", ["not UTF-8", "iconv"]),
    "a command for another file": (M, "/load {txt}\n", ["p.txt", "no state"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that the command lines name."""
    from rwkv_train.inference.engine.engine import Engine
    from rwkv_train.inference.engine.state_files import SavedSequence, save_sequence

    folder = tmp_path_factory.mktemp("files")
    names = {"txt": "p.txt", "empty": "empty.txt", "jsonl": "p.jsonl", "yaml": "t.yaml"}
    names |= {"model": "rwkv-final.pth", "talk": "talk.state", "gap": "gap.pth"}
    names |= {"plain": "plain.state", "other": "other.state"}
    found = {name: folder / file for name, file in names.items()} | {"folder": folder}
    found["txt"].write_text("one\n")
    found["empty"].write_text("\n")
    found["jsonl"].write_text('{"prompt": "a"}\n{"who": 1}\n')
    found["yaml"].write_text("roles: {user: {after: ' '}, assistant: {after: ' ', weight: 1}}")
    for version, name in (("7", "plain"), ("6", "other"), ("7", "talk")):
        model = tiny_model(version, vocab_size=257, n_embd=32)
        if version == "7":
            weights = model.state_dict()
            torch.save(weights, found["model"])
            torch.save({k: v for k, v in weights.items() if "1.att.r_k" not in k}, found["gap"])
        engine = Engine(model)
        logits, states = engine.prefill([[5, 6]])
        conversation = {"template": "world", "system": "", "rounds": []}
        about = {"chat": conversation} if name == "talk" else {}
        save_sequence(found[name], SavedSequence(states[0], logits[0], about), engine)
    return found


def refused(program, words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What the program says on standard error, which must be one line, with status 2."""
    capfd.readouterr()
    try:
        status = program(words)
    except SystemExit as leaving:
        status = leaving.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("name", GENERATE)
def test_generate_refuses(capfd, places: dict[str, Path], name: str):
    line, expected = GENERATE[name]
    before = places["txt"].read_bytes()
    said = refused(generate, line.format(**places).split(), capfd)
    assert all(word in said for word in expected), said
    assert places["txt"].read_bytes() == before


@pytest.mark.parametrize("name", CHAT)
def test_chat_refuses(capfd, places: dict[str, Path], monkeypatch, name: str):
    line, typed, expected = CHAT[name]
    monkeypatch.setattr("sys.stdin", io.StringIO(typed.format(**places)))
    said = refused(chat, line.format(**places).split(), capfd)
    assert all(word in said for word in expected), said
