"""RWKV-4 in transformers: the exported folder opened as the announcement of RWKV there shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.hf_names import checkpoint_keys
from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import WORLD
from rwkv_train.errors import ConfigError
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import SourceModel, read_source
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.transformers_rwkv4 import TransformersFolder, transformers_key
from rwkv_train.export.verification import LogitsReport
from rwkv_train.inference.generate import generate_tokens
from rwkv_train.inference.loading import load_model, tokenizer_of
from rwkv_train.inference.sampling import Sampler, SamplingOptions
from tests.export.exported_models import KINDS, source_model

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (requirements-dev.txt)"
)
FP32 = ExportOptions("fp32")
PROMPT = "17 and 18 make"
CONVERSATION = [
    Message("system", " Be brief.\r\n"),
    Message("user", "hi\n\n\nthere" + "\n" * 100 + "you"),
    Message("assistant", "Hello. "),
    Message("tool", "{}"),
    Message("user", "bye"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, tuple[SourceModel, Path, LogitsReport]]:
    """Kind -> the model, its folder for transformers, what the export reported."""
    done = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        source = source_model("4", kind, folder)
        report = export_model(source, TransformersFolder(), FP32, folder / "hf", say=lambda _: None)
        done[kind] = (source, folder / "hf", report)
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_logits_at_once_and_token_by_token_are_ours(exported, kind: str):
    _, _, report = exported[kind]
    allowed = max(1e-4, 4 * report.ours.error)
    assert report.library == f"transformers {transformers.__version__}"
    assert max(report.at_once.error, report.one_by_one.error) <= allowed
    assert report.at_once.same == report.one_by_one.same == report.at_once.tokens == 200


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_read_as_the_same_model(exported, kind: str):
    source, folder, _ = exported[kind]
    again = read_source(folder)
    assert list(again.weights) == list(source.weights)
    assert all(torch.equal(again.weights[key], source.weights[key]) for key in source.weights)
    assert again.tokenizer is not None and again.tokenizer.name == "bytes"
    assert tokenizer_of(folder, 257).name == "bytes"


def test_the_auto_class_finds_every_tensor(exported):
    _, folder, _ = exported["trained"]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(model).__name__ == "RwkvForCausalLM"
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_what_transformers_saves_again_is_read_as_the_same_model(exported, tmp_path: Path):
    source, folder, _ = exported["random"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    # Its fp16 rescaling, which is off here, would change the weights at the first call.
    model(torch.tensor([[1, 2, 3]]))
    model.save_pretrained(tmp_path / "saved")
    again = read_source(tmp_path / "saved")
    assert all(torch.equal(again.weights[key], source.weights[key]) for key in source.weights)


def greedy(folder: Path, prompt: str, count: int) -> str:
    """Returns our likeliest continuation of a prompt by the model in a folder or file."""
    model = load_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = tokenizer_of(folder, model.config.vocab_size)
    sampler = Sampler(SamplingOptions(temperature=0), torch.Generator())
    return tokenizer.decode(generate_tokens(model, tokenizer.encode(prompt), sampler, count))


def test_generate_writes_our_text(exported):
    source, folder, _ = exported["trained"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(inputs["input_ids"], max_new_tokens=40, do_sample=False)
    text = tokenizer.decode(output[0].tolist())
    assert text == PROMPT + greedy(source.path, PROMPT, 40)
    assert len(text) > len(PROMPT)


def test_the_pipeline_writes_our_text_from_the_folder_s_name(exported):
    source, folder, _ = exported["trained"]
    generate = transformers.pipeline("text-generation", str(folder))
    (found,) = generate(PROMPT, max_new_tokens=40, do_sample=False)
    assert found["generated_text"] == PROMPT + greedy(source.path, PROMPT, 40)


def test_the_chat_template_writes_what_the_data_s_template_writes(exported):
    _, folder, _ = exported["trained"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    ours = WORLD.segments([*CONVERSATION, Message("assistant", "end")])
    assert text == "".join(segment.text for segment in ours[:-2])
    assert text.endswith("User: bye\n\nAssistant:") and "hi\nthere\nyou" in text
    with pytest.raises(Exception, match="has no role critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


def test_a_half_precision_folder_says_so_and_computes(tmp_path: Path):
    source = source_model("4", "random", tmp_path)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        folder = tmp_path / precision
        report = export_model(source, TransformersFolder(), ExportOptions(precision), folder)
        assert report is not None and report.at_once is not None
        assert report.at_once.error <= 1e-4
        config = json.loads((folder / "config.json").read_text())
        # Only fp16 overflows; elsewhere halving changes the weights of a loaded model in vain.
        assert config["rescale_every"] == (6 if precision == "fp16" else 0)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert model.rwkv.blocks[0].attention.key.weight.dtype == dtype
        assert read_source(folder).dtype == dtype


def test_names_are_translated_back(exported):
    source, _, _ = exported["random"]
    theirs = {transformers_key(key): key for key in source.weights}
    assert "rwkv.blocks.0.attention.time_mix_receptance" in theirs and "head.weight" in theirs
    assert list(checkpoint_keys(Path("x"), theirs, str)) == list(source.weights)


def test_other_models_are_refused(exported, tmp_path: Path):
    source, _, _ = exported["random"]
    wide = replace(source, config=replace(source.config, dim_att=128))
    newer = replace(source, config=replace(source.config, rwkv_version="6"))
    for model, reason in ((wide, r"--dim_att \(128\)"), (newer, "RWKV-4 only, this is RWKV-6")):
        with pytest.raises(ConfigError, match=f"cannot be exported --to transformers: .*{reason}"):
            export_model(model, TransformersFolder(), FP32, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
