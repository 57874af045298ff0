"""`rwkv-embed`: files of texts to files of vectors, and one line with status 2 where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_train.inference.embed import embedding_program
from rwkv_train.inference.embed.__main__ import main
from rwkv_train.inference.embed.pooling import pooled_vectors
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.loading import load_model
from tests.models.tiny import tiny_model

TEXTS = ["Hello world", "", "a" * 50, "Grüße", "b", "a longer text, with words"]
FULL = [bool(text) for text in TEXTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level RWKV-7 with random weights."""
    path = tmp_path_factory.mktemp("models") / "rwkv-final.pth"
    torch.save(tiny_model("7", vocab_size=257).state_dict(), path)
    return path


@pytest.fixture
def embed(tmp_path: Path, model: Path, monkeypatch) -> Callable[..., np.ndarray]:
    """Writes TEXTS, or those given, and returns the array that the program makes of them."""
    monkeypatch.setattr(embedding_program, "_WINDOW_BATCHES", 2)

    def run(*flags: object, texts: list[str] = TEXTS) -> np.ndarray:
        source, output = tmp_path / "texts.jsonl", tmp_path / "E.npy"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for path in tmp_path.glob("E.npy*"):
            path.unlink()
        words = ["--load_model", model, "--input", source, "--output", output, *flags]
        assert main([str(word) for word in words]) == 0
        return np.load(output)

    return run


def expected_mean(model: Path, texts: list[str]) -> np.ndarray:
    """The normalized means; the tokens of bytes are the bytes plus 1."""
    engine = Engine(load_model(model, device=torch.device("cpu"), dtype=torch.float32))
    ids = [[byte + 1 for byte in text.encode()] for text in texts]
    vectors = torch.cat([pooled_vectors(engine, [each], "mean") for each in ids])
    return (vectors / vectors.norm(dim=1, keepdim=True)).numpy()


def test_rows_stand_in_the_order_of_the_texts(embed, model: Path, capfd, tmp_path: Path):
    found = embed("--batch", 2)
    assert (found.dtype, found.shape) == (np.float32, (6, 64))
    assert np.abs(found[FULL] - expected_mean(model, [t for t in TEXTS if t])).max() < 1e-6
    assert np.abs(np.linalg.norm(found[FULL], axis=1) - 1).max() < 1e-6
    assert not found[1].any()
    out, err = capfd.readouterr()
    assert err == "WARNING: 1 of 6 texts are empty; theirs are zeros\n"
    assert "6 vectors of 64 numbers" in out
    facts = json.loads((tmp_path / "E.npy.json").read_text())
    tokens = sum(len(text.encode()) for text in TEXTS)
    assert (facts["texts"], facts["empty"], facts["tokens"]) == (6, 1, tokens)
    assert (facts["pooling"], facts["dimension"], facts["tokenizer"]) == ("mean", 64, "bytes")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "E.npy",
        "E.npy.json",
        "texts.jsonl",
    ]


def test_neither_batch_nor_order_changes_a_vector(embed):
    one, many = embed("--batch", 1), embed("--batch", 16)
    turned = embed("--batch", 3, texts=TEXTS[::-1])[::-1]
    assert np.abs(one - many).max() < 1e-6 and np.abs(one - turned).max() < 1e-6


def test_json_lines_hold_the_same_numbers_under_the_names_of_their_texts(
    embed, model: Path, tmp_path: Path, capfd
):
    rows = [{"body": TEXTS[0], "id": "first"}, {"id": 7, "body": TEXTS[3]}, {"body": TEXTS[4]}]
    source, output = tmp_path / "rows.jsonl", tmp_path / "E.jsonl"
    source.write_text("\n\n".join(map(json.dumps, rows)))
    words = f"--load_model {model} --input {source} --text_key body --output {output}".split()
    assert main(words) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["first", 7, 2]
    array = embed(texts=[row["body"] for row in rows])
    assert np.array_equal(np.float32([line["embedding"] for line in lines]), array)


def test_what_stands_around_a_text_is_read_with_it(embed):
    around = embed("--prefix", r"Q:\n", "--suffix", " A:", "--append", 32)
    # In the vocabulary of bytes 32 is the character with the code 31.
    whole = embed(texts=[f"Q:\n{text} A:\x1f" for text in TEXTS])
    assert np.abs(around[FULL] - whole[FULL]).max() < 1e-6
    assert np.abs(around[FULL] - embed()[FULL]).max() > 1e-2
    # A text that says nothing does not get a direction from what stands around it.
    assert not around[1].any()


def test_a_line_of_another_file_is_a_text(embed, model: Path, tmp_path: Path):
    source, output = tmp_path / "lines.txt", tmp_path / "lines.npy"
    source.write_bytes("\ufeffGrüße\r\n\nb".encode())
    assert main(f"--load_model {model} --input {source} --output {output}".split()) == 0
    assert np.array_equal(np.load(output), embed(texts=["Grüße", "", "b"]))


def test_the_mean_is_taken_off_and_kept_for_other_texts(embed, tmp_path: Path):
    plain = embed("--normalize", 0)
    center = plain[FULL].mean(0)
    found = embed("--center", "compute", "--normalize", 0)
    assert np.abs(found[FULL] - (plain[FULL] - center)).max() < 1e-5 * np.abs(plain).max()
    assert not found[1].any()
    kept = np.load(tmp_path / "E.npy.center.npy")
    assert kept.shape == (64,)
    np.save(tmp_path / "kept.npy", kept)
    centered = embed("--center", "compute")
    again = embed("--center", tmp_path / "kept.npy", texts=[TEXTS[0]])
    assert np.abs(again[0] - centered[0]).max() < 1e-5
    assert np.abs(np.linalg.norm(centered[FULL], axis=1) - 1).max() < 1e-6


def test_a_vector_without_direction_is_zero_and_told(embed, capfd):
    found = embed("--center", "compute", texts=["same", "same"])
    assert not found.any()
    assert "WARNING: 2 vectors are zero" in capfd.readouterr().err


def test_layers_and_states_have_their_own_sizes(embed, tmp_path: Path):
    behind_first = embed("--layer", 0)
    assert behind_first.shape == (6, 64) and not np.allclose(behind_first, embed())
    assert embed("--pooling", "state", "--layer", 0).shape == (6, 2 * 32 * 32)


def test_a_vector_that_overflows_is_refused(tmp_path: Path, capfd):
    weights = tiny_model("7", vocab_size=257).state_dict()
    weights["ln_out.weight"].fill_(60000)
    torch.save(weights, tmp_path / "large.pth")
    (tmp_path / "t.txt").write_text("one\n")
    words = [f"--load_model={tmp_path}/large.pth", f"--input={tmp_path}/t.txt", "--precision=fp16"]
    assert main([*words, f"--output={tmp_path}/E.npy"]) == 2
    assert "line 1: the vector is not finite" in capfd.readouterr().err
    assert not list(tmp_path.glob("E.npy*"))


WRONG = {
    "no model": ("--input {txt} --output {new}", ["--load_model"]),
    "a misspelt flag": ("--pools mean --input {txt}", ["--pools"]),
    "a missing input": ("--input gone.txt --output {new}", ["gone.txt", "does not exist"]),
    "a folder": ("--input {folder} --output {new}", ["is no file"]),
    "no text": ("--input {empty} --output {new}", ["empty.jsonl", "no text"]),
    "no JSON": ("--input {rows} --output {new}", ["rows.jsonl, line 2", "JSON"]),
    "another key": ("--input {rows} --output {new} --text_key body", ["'body'", "text, n"]),
    "half a character": ("--input {half} --output {new}", ["half.jsonl, line 1", "surrogate"]),
    "not UTF-8": ("--input {latin} --output {new}", ["latin.txt, line 2", "UTF-8", "0xfc"]),
    "another ending": ("--input {txt} --output {folder}/E.csv", ["E.csv", ".npy or .jsonl"]),
    "no such folder": ("--input {txt} --output {folder}/no/E.npy", ["is no folder"]),
    "no place": ("--input {txt} --output /proc/E.npy", ["/proc/E.npy cannot be written: "]),
    "a file that exists": ("--input {txt} --output {vector}", ["is not written over"]),
    "no batch": ("--input {txt} --output {new} --batch 0", ["--batch 0", "at least 1"]),
    "a layer too many": ("--input {txt} --output {new} --layer 2", ["--layer 2", "0 to 1"]),
    "no token": ("--input {txt} --output {new} --append end", ["--append 'end'", "number"]),
    "a token too many": ("--input {txt} --output {new} --append 257", ["257", "0 to 256"]),
    "a mean of one": ("--input {txt} --output {new} --center compute", ["two texts"]),
    "a center of another size": (
        "--input {txt} --output {new} --center {vector}",
        ["float32 [3]", "64 numbers"],
    ),
    "no center": ("--input {txt} --output {new} --center {txt}", ["t.txt is no array"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_is_answered_by_one_line(name: str, tmp_path: Path, model, capfd):
    names = {"txt": "t.txt", "empty": "empty.jsonl", "rows": "rows.jsonl", "half": "half.jsonl"}
    names |= {"latin": "latin.txt", "vector": "v.npy", "new": "new.npy"}
    places = {key: tmp_path / file for key, file in names.items()} | {"folder": tmp_path}
    places["txt"].write_text("one\n")
    places["empty"].write_text("\n")
    places["rows"].write_text('{"text": "a", "n": 1}\n{"text"\n')
    places["half"].write_text('{"text": "\\ud83d"}\n')
    places["latin"].write_bytes(b"one\nf\xfcr\n")
    np.save(places["vector"], np.ones(3, np.float32))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    line, expected = WRONG[name]
    words = line.format(**places).split()
    if name != "no model":
        words += ["--load_model", str(model)]
    try:
        status = main(words)
    except SystemExit as leaving:
        status = leaving.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in expected), err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
