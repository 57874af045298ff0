"""GGUF files load in llama.cpp itself, which computes and tokenizes as we do."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.data.tokenize.characters import CharacterTokenizer
from rwkv_train.data.tokenize.tokenizer import BytesTokenizer, Tokenizer, WorldTokenizer
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.export.__main__ import main
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.gguf_file import GgufFile
from rwkv_train.export.targets.gguf_tensors import from_gguf, to_gguf
from rwkv_train.export.targets.gguf_vocabulary import gguf_tokens
from rwkv_train.export.targets.llama_cpp import ask_llama_cpp
from tests.export import llama_cpp_words
from tests.export.exported_models import KINDS, random_weights, source_model

pytest.importorskip("gguf", reason="gguf, which writes these files, is not installed")
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="xllamacpp, which holds llama.cpp, is not installed",
)
FP32 = ExportOptions("fp32")
UNUSED = {f"blocks.0.att.v{number}" for number in range(3)}
CONVERSATION = [
    ("system", "Be brief."),
    ("user", " hi\n\nthere "),
    ("assistant", "Hello. "),
    ("user", "bye"),
]


def adversarial_texts(tokens: list[bytes]) -> list[str]:
    """200 texts at which tokenizers go wrong, most of them of random tokens side by side."""
    texts = [
        "",
        "\0",
        "\x01\x7f\x1b[0m",
        "'\"\\ '\\n' \\x41 \\",
        "b'\\xff'",
        "\n\n\n\r\n\t\n",
        "\u2028\u2029\u00a0\ufeff",
        "👨‍👩‍👧‍👦🏳️‍🌈👍🏽",
        "שלום مرحبا नमस्ते สวัสดี",
        "e\u0301\u0301\u0301 \u0301",
        "x[PAD300]y[PAD65530]",
        "\\xff\\xfe[PAD65530]",
        "</s><|endoftext|><unk>",
        "=" * 300,
        " " * 300,
        "世界上最大的动物\U0002f800是什么?",
        "İıſßẞ ﬁ Ǆ",
    ]
    chosen = random.Random(7)
    while len(texts) < 200:
        content = b"".join(chosen.choices(tokens, k=chosen.randint(1, 12)))
        try:
            texts.append(content.decode())
        except UnicodeDecodeError:
            texts.append(content.decode("utf-8", "replace"))
    return texts


def tell(path: Path, job: dict) -> dict:
    """What `llama_cpp_words` gives for a job."""
    asked, answer = path.with_suffix(".json"), path.with_suffix(".out")
    asked.write_text(json.dumps(job))
    words = [sys.executable, llama_cpp_words.__file__, str(path), str(asked), str(answer)]
    subprocess.run(words, check=True, capture_output=True)
    return json.loads(answer.read_text())


def assert_tokenized_alike(found: dict, texts: list[str], tokenizer: Tokenizer) -> None:
    rows = zip(texts, found["ids"], strict=True)
    assert [text for text, ids in rows if ids != tokenizer.encode(text)] == []


def pieces_of(found: dict) -> list[bytes]:
    return [bytes.fromhex(piece) for piece in found["pieces"]]


@needs_llama_cpp
@pytest.mark.parametrize("version", ["6", "7"])
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same(tmp_path: Path, version: str, kind: str):
    source = source_model(version, kind, tmp_path)
    report = export_model(source, GgufFile(), FP32, tmp_path / "m.gguf", card=False)
    assert report is not None and report.at_once is not None and report.one_by_one is not None
    assert report.library.startswith("llama.cpp (xllamacpp ")
    allowed = max(1e-4, 4 * report.ours.error)
    assert max(report.at_once.error, report.one_by_one.error) <= allowed
    assert report.at_once.same == report.at_once.tokens == 200
    found = GgufFile().read_back(tmp_path / "m.gguf")
    assert list(found) == list(source.weights)
    for key, value in source.weights.items():
        assert found[key].shape == value.shape
        assert key in UNUSED or torch.equal(found[key], value)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("version", "precision", "error"),
    [("6", "fp16", 1e-2), ("7", "fp16", 1e-2), ("7", "bf16", 8e-2), ("6", "q8_0", 8e-2)],
)
def test_fewer_bits_cost_what_they_must(tmp_path: Path, version: str, precision: str, error):
    """llama.cpp rounds the other factor of a product to the matrix's format too."""
    source = source_model(version, "random", tmp_path)
    options = ExportOptions(precision)
    report = export_model(source, GgufFile(), options, tmp_path / "m.gguf", card=False)
    assert report is not None and report.at_once is not None and report.cast is not None
    assert 1e-5 < report.at_once.error < error
    assert 1e-5 < report.cast.error < error
    assert report.at_once.same > 180


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_only_large_matrices_are_rounded(tmp_path: Path, precision: str):
    dtype = DTYPES[precision]
    source = source_model("6", "random", tmp_path)
    GgufFile().write(source, ExportOptions(precision), tmp_path / "m.gguf")
    found = GgufFile().read_back(tmp_path / "m.gguf")
    rounded = {key for key, value in found.items() if value.dtype == dtype}
    assert rounded == {
        key
        for key in found
        if key in ("emb.weight", "head.weight")
        or key.endswith(("receptance.weight", "key.weight", "value.weight"))
        or key.endswith(("output.weight", "gate.weight"))
    }
    for key, value in source.weights.items():
        assert torch.equal(found[key], value.to(dtype) if key in rounded else value)


def test_q8_0_rounds_to_a_127th_of_the_largest_of_32(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    GgufFile().write(source, ExportOptions("q8_0"), tmp_path / "m.gguf")
    found = GgufFile().read_back(tmp_path / "m.gguf")
    value = source.weights["blocks.1.att.key.weight"].view(-1, 32)
    error = (found["blocks.1.att.key.weight"].view(-1, 32) - value).abs()
    # Half a step, and the scale itself is an fp16.
    step = value.abs().amax(1, keepdim=True) / 127
    assert bool((error <= step * 0.5 + step * 127 * 2**-11).all()) and bool(error.any())
    low_rank = "blocks.1.att.g2"
    assert torch.equal(found[low_rank], source.weights[low_rank])


@needs_llama_cpp
def test_bytes_are_tokenized_alike(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    remarks = GgufFile().write(source, FP32, tmp_path / "m.gguf")
    assert not remarks
    texts = adversarial_texts([bytes([byte]) for byte in range(256)])
    found = tell(tmp_path / "m.gguf", {"texts": texts})
    assert_tokenized_alike(found, texts, BytesTokenizer())
    assert pieces_of(found)[1:] == [bytes([byte]) for byte in range(256)]
    # No chat token among bytes: only the end of a document ends an answer.
    assert found["ends"] == [0]


@pytest.fixture(scope="module")
def world_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    sizes = {"vocab_size": 65536, "n_layer": 1, "n_embd": 32, "dim_ffn": 32}
    source = source_model("7", "random", folder, **sizes)
    (remark,) = GgufFile().write(source, ExportOptions("fp16"), folder / "m.gguf")
    assert "ends its answer at token 261" in remark and "--gguf_eot none" in remark
    return folder / "m.gguf"


@needs_llama_cpp
def test_world_is_tokenized_alike(world_file: Path):
    world = WorldTokenizer()
    tokens = world.token_bytes()
    texts = adversarial_texts(tokens[1:65530])
    found = tell(world_file, {"texts": texts, "messages": CONVERSATION})
    assert_tokenized_alike(found, texts, world)
    assert pieces_of(found)[1:65530] == tokens[1:65530]
    assert found["ends"] == [0, 261]
    # By its own template of that name, which keeps blank lines within a message.
    assert found["laid_out"] == (
        "System: Be brief.\n\nUser: hi\n\nthere\n\nAssistant: Hello.\n\nUser: bye\n\nAssistant:"
    )


@needs_llama_cpp
def test_llama_cpp_s_server_lays_a_conversation_out_as_the_training_data(world_file: Path):
    """Its server carries the template out as Jinja, where a bare name would be the whole text."""
    expected = (
        "System: Be brief.\n\nUser: hi\nthere\n\nAssistant: Hello.\n\nUser: bye\n\nAssistant:"
    )
    found = tell(world_file, {"chat": CONVERSATION})
    assert found["prompt_tokens"] == len(WorldTokenizer().encode(expected))


def test_the_end_of_an_answer_is_a_choice(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    source = replace(source_model("7", "random", tmp_path), tokenizer=WorldTokenizer())
    # 261, World's blank line, is no token of a model with 257 rows.
    for given, expected in (("none", None), ("11", 11), (None, None)):
        path = tmp_path / f"{given}.gguf"
        GgufFile().write(source, ExportOptions("fp32", given), path)
        field = gguf.GGUFReader(path).get_field("tokenizer.ggml.eot_token_id")
        assert (None if field is None else field.contents()) == expected
    with pytest.raises(ConfigError, match="--gguf_eot 257 is neither none nor a token below 257"):
        export_model(source, GgufFile(), ExportOptions("fp32", "257"), tmp_path / "m.gguf")


def test_a_token_is_spelled_as_in_rwkv_s_vocabulary():
    tokens = [b"", b"a b", b"'", b'"', b"'\"", b"\\", b"\n\t\r", b"\x00\xff", "é".encode(), b""]
    spellings, kinds = gguf_tokens(tokens, 11)
    assert spellings == [
        "<s>",
        "a b",
        "'",
        '"',
        "\\'\"",
        "\\\\",
        "\\n\\t\\r",
        "\\x00\\xff",
        "\\xc3\\xa9",
        "\\xff\\xfe[PAD9]",
        "\\xff\\xfe[PAD10]",
    ]
    assert kinds == [3, 1, 1, 1, 1, 1, 1, 1, 1, 5, 5]


def test_names_and_shapes_are_llama_cpp_s():
    """Some of each form, in torch's order of axes, from llama.cpp's loader."""
    ranks = {"n_embd": 64, "vocab_size": 257}
    seven = to_gguf(random_weights("7", **ranks).state_dict(), "7")
    shapes = {
        "token_embd.weight": (257, 64),
        "token_embd_norm.bias": (64,),
        "blk.1.attn_norm_2.weight": (64,),
        "blk.0.time_mix_lerp_fused.weight": (6, 1, 1, 64),
        "blk.1.time_mix_w1.weight": (24, 64),
        "blk.1.time_mix_w2.weight": (64, 24),
        "blk.1.time_mix_v1.weight": (16, 64),
        # Of the rank of a1, for so llama.cpp allots it.
        "blk.0.time_mix_v1.weight": (40, 64),
        "blk.1.time_mix_r_k.weight": (64,),
        "blk.1.channel_mix_lerp_k.weight": (64,),
    }
    assert {name: tuple(seven[name].shape) for name in shapes} == shapes
    model = random_weights("6", **ranks).state_dict()
    six = to_gguf(model, "6")
    shapes = {
        "blk.1.time_mix_lerp_fused.weight": (5, 1, 1, 64),
        "blk.1.time_mix_lerp_x.weight": (64,),
        "blk.1.time_mix_w1.weight": (120, 64),
        "blk.1.time_mix_w2.weight": (5, 64, 24),
        "blk.1.time_mix_first.weight": (2, 32),
        "blk.1.time_mix_decay_w2.weight": (64, 40),
        "blk.1.channel_mix_receptance.weight": (64, 64),
    }
    assert {name: tuple(six[name].shape) for name in shapes} == shapes
    receptance = six["blk.1.time_mix_lerp_fused.weight"][3, 0, 0]
    assert torch.equal(receptance, model["blocks.1.att.time_maa_r"].flatten())
    with pytest.raises(KeyError, match=r"att\.time_state"):
        to_gguf({"blocks.0.att.time_state": torch.zeros(2, 32, 32)}, "7")
    with pytest.raises(KeyError, match="time_mix_new"):
        from_gguf({"blk.0.time_mix_new.weight": torch.zeros(2)}, "7", 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "fla", "--gguf_eot", "261", "--output", "m"), "is for --to gguf only"),
        (("--to", "gguf", "--gguf_eot", "-1", "--output", "m.gguf"), "neither none nor a token"),
        (("--to", "gguf", "--output", "m.bin"), "must end in .gguf"),
        (("--to", "fla", "--precision", "q8_0", "--output", "m"), "has no --precision q8_0"),
        (("--to", "web-rwkv", "--precision", "bf16", "--output", "m.st"), "choose from fp16"),
    ],
)
def test_wrong_words_are_one_line(tmp_path: Path, monkeypatch, capsys, words, said: str):
    model = source_model("7", "random", tmp_path).path
    monkeypatch.chdir(tmp_path)
    assert main(["--load_model", model.name, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert list(tmp_path.iterdir()) == [model]


@needs_llama_cpp
def test_a_file_that_llama_cpp_does_not_take_is_an_error_with_its_words(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"llama\.cpp does not take .*m\.gguf: .*load"):
        ask_llama_cpp(tmp_path / "m.gguf", {"prompts": [[1]]})


@pytest.mark.parametrize("version", ["4", "5"])
def test_versions_that_llama_cpp_lacks_are_refused(tmp_path: Path, version: str):
    source = source_model(version, "random", tmp_path)
    with pytest.raises(ConfigError, match=rf"llama\.cpp has no RWKV-{version}"):
        export_model(source, GgufFile(), FP32, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_model_without_a_vocabulary_of_bytes_is_refused(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    unknown: SourceModel = replace(source, tokenizer=None, no_tokenizer="no tokenizer is known")
    assert "no tokenizer is known" in (GgufFile().refuses(unknown, FP32) or "")
    characters = replace(source, tokenizer=CharacterTokenizer("vocab.json", {0: "a", 1: "b"}))
    assert "its tokenizer vocab.json is none" in (GgufFile().refuses(characters, FP32) or "")


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch):
    source, said = source_model("7", "random", tmp_path), []
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    export_model(source, GgufFile(), FP32, tmp_path / "m.gguf", card=False, say=said.append)
    assert any("the package xllamacpp is not installed" in line for line in said)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match="--to gguf needs the Python package gguf: pip install"):
        export_model(source, GgufFile(), FP32, tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


@needs_llama_cpp
def test_another_tokenizer_than_llama_cpp_s_is_an_error(tmp_path: Path):
    class Shifted(BytesTokenizer):
        """Gives every byte the id of the next."""

        name = "shifted"

        def encode(self, text: str) -> list[int]:
            return [1 + byte % 256 for byte in super().encode(text)]

    source = replace(source_model("7", "random", tmp_path), tokenizer=Shifted())
    with pytest.raises(CheckpointError, match=r"llama\.cpp tokenizes .* tokenizer shifted as"):
        export_model(source, GgufFile(), FP32, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
