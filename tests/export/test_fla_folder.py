"""Folders for fla and rwkv7-hf load there, compute the same, and come back."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import read_source
from rwkv_train.export.reference_logits import (
    fixed_prompts,
    logits_at_once,
    own_model,
    relative_error,
)
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.fla_folder import FlaFolder, Rwkv7HfFolder
from tests.export.exported_models import KINDS, source_model
from tests.export.fla_rwkv6 import FlaRwkv6

FP32 = ExportOptions("fp32")
# As RWKV's are: for these fla and RWKV-7 give the norm of the heads the same eps.
HEADS_OF_64 = {"n_embd": 128, "head_size": 64}
UNUSED = {f"blocks.0.att.v{number}" for number in range(3)}


def assert_same_bits(folder: Path, original: dict[str, torch.Tensor], but: set[str] = frozenset()):
    found = read_source(folder).weights
    assert list(found) == list(original)
    differing = {key for key, value in original.items() if not torch.equal(found[key], value)}
    assert differing == but
    assert all(found[key].shape == value.shape for key, value in original.items())


@pytest.mark.parametrize("kind", KINDS)
def test_rwkv6_computes_the_same_by_fla_s_rules(tmp_path: Path, kind: str):
    source = source_model("6", kind, tmp_path)
    said: list[str] = []
    export_model(source, FlaFolder(), FP32, tmp_path / "fla", card=False, say=said.append)
    theirs = FlaRwkv6(tmp_path / "fla")
    exact = own_model(source.weights, source.config, torch.float64)
    for tokens in fixed_prompts(257, source.tokenizer):
        assert relative_error(theirs.logits(tokens), logits_at_once(exact, tokens)) < 1e-10
    assert theirs.used == theirs.weights.keys()
    assert_same_bits(tmp_path / "fla", source.weights)
    assert any("fla computes on a GPU only" in line for line in said)
    assert any("divided by 8" in line for line in said)


@pytest.mark.parametrize(("kind", "sizes"), [("random", HEADS_OF_64), ("trained", {})])
def test_rwkv7_computes_the_same_in_rwkv7_hf(tmp_path: Path, kind: str, sizes: dict[str, int]):
    pytest.importorskip("rwkv7_hf", reason="rwkv7-hf is not installed")
    source = source_model("7", kind, tmp_path, **sizes)
    report = export_model(source, Rwkv7HfFolder(), FP32, tmp_path / "hf", card=False)
    assert report is not None and report.at_once is not None and report.one_by_one is not None
    allowed = max(1e-4, 4 * report.ours.error)
    assert max(report.at_once.error, report.one_by_one.error) <= allowed
    assert report.at_once.same == report.at_once.tokens == 200


@pytest.mark.parametrize("head_size", [16, 64])
def test_rwkv7_comes_back_bit_for_bit(tmp_path: Path, head_size: int):
    source = source_model("7", "random", tmp_path, head_size=head_size)
    FlaFolder().write(source, FP32, tmp_path / "fla")
    assert_same_bits(tmp_path / "fla", source.weights, but=UNUSED)
    # RWKV-LM loads strictly: what fla leaves out is there again, as zeros.
    weights = load_weights(tmp_path / "fla")
    assert all(not weights[key].any() for key in UNUSED)
    assert all(weights[key].shape == source.weights[key].shape for key in source.weights)


def test_a_divisor_that_is_no_power_of_two_costs_the_last_bit(tmp_path: Path):
    source = source_model("7", "random", tmp_path, head_size=32)
    (remark,) = FlaFolder().write(source, FP32, tmp_path / "fla")
    assert "1.41421" in remark and "with a rounding of the last bit" in remark
    found = read_source(tmp_path / "fla").weights
    for key, value in source.weights.items():
        if key.endswith(("att.value.weight", "att.r_k")):
            torch.testing.assert_close(found[key], value, rtol=3e-7, atol=0)
        elif key not in UNUSED:
            assert torch.equal(found[key], value)


def test_in_fp16_a_division_may_cost_the_last_bit_too(tmp_path: Path):
    """Below 2^-14 fp16 has fewer digits, and an eighth of 2^-12 is there."""
    source = source_model("6", "random", tmp_path)
    key = "blocks.0.att.value.weight"
    source.weights[key][0, 0] = (1 + 2**-9) * 2**-12
    for precision, how in (("fp16", "with a rounding of the last bit"), ("bf16", "exactly")):
        folder = tmp_path / precision
        (remark,) = FlaFolder().write(source, ExportOptions(precision), folder)
        assert how in remark
        found, wanted = FlaFolder().read_back(folder), source.weights[key].to(DTYPES[precision])
        assert torch.equal(found[key], wanted) == (how == "exactly")


@pytest.mark.parametrize("version", ["6", "7"])
def test_bf16_comes_back_as_it_was_written(tmp_path: Path, version: str):
    source = source_model(version, "random", tmp_path, **HEADS_OF_64)
    options = ExportOptions("bf16")
    FlaFolder().write(source, options, tmp_path / "fla")
    rounded = {key: value.bfloat16() for key, value in source.weights.items()}
    assert_same_bits(tmp_path / "fla", rounded, but=UNUSED if version == "7" else set())


def test_the_settings_are_the_model_s(tmp_path: Path):
    """The ranks of the tests' models are all different; fla's defaults are no RWKV's."""
    for version in "67":
        source = source_model(version, "random", tmp_path)
        FlaFolder().write(source, FP32, tmp_path / version)
    six, seven = (json.loads((tmp_path / v / "config.json").read_text()) for v in "67")
    expected = {"proj_low_rank_dim": 24, "gate_low_rank_dim": 40, "expand_k": 1.0, "num_heads": 2}
    assert six.items() >= expected.items()
    assert six["rwkv_value_divided_by"] == 8
    expected = {
        "decay_low_rank_dim": 24,
        "a_low_rank_dim": 40,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 56,
        "head_dim": 32,
        "value_dim": [64, 64],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    assert seven.items() >= expected.items()


def test_the_vocabulary_lies_in_the_folder_as_llama_cpp_s_converter_wants_it(tmp_path: Path):
    source = source_model("7", "random", tmp_path)
    FlaFolder().write(source, FP32, tmp_path / "fla")
    lines = (tmp_path / "fla/rwkv_vocab_v20230424.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 257 and lines[-1] == ""
    for number, line in enumerate(lines[:-1], 1):
        index, _, rest = line.partition(" ")
        literal, _, length = rest.rpartition(" ")
        token = ast.literal_eval(literal)
        content = token.encode() if isinstance(token, str) else token
        assert (int(index), content, int(length)) == (number, bytes([number - 1]), 1)


def test_fla_itself_takes_all_tensors_and_no_others(tmp_path: Path):
    if importlib.util.find_spec("fla") is None or importlib.util.find_spec("triton") is None:
        pytest.skip("fla is not installed: it needs triton, which is large and of no use here")
    said: list[str] = []
    source = source_model("6", "random", tmp_path)
    export_model(source, FlaFolder(), FP32, tmp_path / "fla", card=False, say=said.append)
    assert any("takes all tensors and no others" in line for line in said)
    tensors = load_file(tmp_path / "fla/model.safetensors")
    del tensors["model.layers.1.attn.bonus"]
    save_file(tensors, tmp_path / "fla/model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing, first model\.layers\.1\.attn\.bonus"):
        FlaFolder().logits(tmp_path / "fla", source, [[1]])


def test_versions_without_a_form_are_refused(tmp_path: Path):
    for version, target in (("4", FlaFolder()), ("5", FlaFolder()), ("6", Rwkv7HfFolder())):
        source = source_model(version, "random", tmp_path)
        with pytest.raises(ConfigError, match=rf"--to {target.name}: .*RWKV-{version}"):
            export_model(source, target, FP32, tmp_path / "out")
    one_layer = source_model("7", "random", tmp_path, n_layer=1)
    with pytest.raises(ConfigError, match="of one layer"):
        export_model(one_layer, FlaFolder(), FP32, tmp_path / "out")
    assert not (tmp_path / "out").exists()
