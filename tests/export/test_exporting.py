"""An export is written only when it reads back bit for bit and gives our logits."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.adapter_files import Adapter, merge_adapter, save_adapter
from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import SourceModel, read_source
from rwkv_train.export.reference_logits import fixed_prompts, logits_at_once, own_model
from rwkv_train.export.target import ExportOptions, TargetLogits, Unavailable
from rwkv_train.export.target_table import TARGETS, target_named
from rwkv_train.export.targets.plain_weights import PthFile, SafetensorsFile
from tests.export.exported_models import random_weights, source_model
from tests.models.tiny import VERSIONS, tiny_model

FP32 = ExportOptions("fp32")


class Untrue(SafetensorsFile):
    """A target whose program computes something else by `wrong` of the largest logit."""

    wrong = 1e-3
    holds_states = False

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        return super().write(replace(model, states={}), options, path)

    def logits(self, path: Path, model: SourceModel, prompts: list[list[int]]):
        exact = own_model(model.weights, model.config, torch.float64)
        found = [logits_at_once(exact, tokens) for tokens in prompts]
        off = [logits + self.wrong * logits.abs().max() for logits in found]
        return [TargetLogits("toy 1.0", rows.float(), None) for rows in off]


class Damaged(SafetensorsFile):
    """A target that writes one number wrongly, by the smallest step there is."""

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        weights = {key: value.clone() for key, value in model.weights.items()}
        first = weights["blocks.1.ffn.value.weight"].view(-1)
        first[0] = torch.nextafter(first[0], torch.tensor(10.0))
        return super().write(replace(model, weights=weights), options, path)


@pytest.fixture
def model(tmp_path: Path) -> SourceModel:
    return source_model("7", "random", tmp_path)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("version", VERSIONS)
def test_any_version_goes_to_safetensors_and_back_bit_for_bit(tmp_path: Path, version: str):
    source = source_model(version, "random", tmp_path)
    say: list[str] = []
    export_model(source, SafetensorsFile(), FP32, tmp_path / "m.safetensors", say=say.append)
    again = read_source(tmp_path / "m.safetensors")
    export_model(again, PthFile(), FP32, tmp_path / "again.pth", check=False, say=say.append)
    before, after = load_weights(source.path), load_weights(tmp_path / "again.pth")
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "logits were not compared (--check 0)" in say


@pytest.mark.parametrize(("precision", "lost"), [("bf16", 5e-2), ("fp16", 5e-3)])
def test_a_cast_is_told_apart_from_what_the_program_makes_of_it(tmp_path: Path, precision, lost):
    source = source_model("6", "random", tmp_path)
    report = export_model(
        source, SafetensorsFile(), ExportOptions(precision), tmp_path / "m.safetensors"
    )
    assert report is not None and report.cast is not None
    assert 1e-5 < report.cast.error < lost
    # Of the numbers written, ours are computed in fp32: the cast is no part of that error.
    assert report.ours.error < 1e-5 and report.ours_recurrent.error < 1e-5
    assert load_weights(tmp_path / "m.safetensors")["emb.weight"].dtype == source_dtype(precision)


def source_dtype(precision: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def test_other_logits_are_an_error_and_leave_nothing(model: SourceModel, tmp_path: Path):
    before = left_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"toy 1\.0 at once differ .* 1\.\de-03 .* 1\.0e-04"):
        export_model(model, Untrue(), FP32, tmp_path / "m.safetensors")
    assert left_in(tmp_path) == before


def test_a_disk_that_is_full_is_told_and_nothing_is_left(model: SourceModel, tmp_path: Path):
    class Full(SafetensorsFile):
        def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = left_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: No space left .*; make room"):
        export_model(model, Full(), FP32, tmp_path / "m.safetensors")
    assert left_in(tmp_path) == before


def test_small_differences_of_logits_are_rounding(model: SourceModel, tmp_path: Path):
    target = Untrue()
    target.wrong = 5e-5
    report = export_model(model, target, FP32, tmp_path / "m.safetensors")
    assert report is not None and report.at_once is not None
    assert report.at_once.error == pytest.approx(5e-5, rel=0.1)
    assert report.largest == 1e-4


def test_logits_that_are_no_numbers_are_an_error(model: SourceModel, tmp_path: Path):
    target = Untrue()
    target.wrong = float("nan")
    with pytest.raises(CheckpointError, match="differ from ours by inf"):
        export_model(model, target, FP32, tmp_path / "m.safetensors")


def test_a_number_that_comes_back_otherwise_is_an_error(model: SourceModel, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"1 of 72 .* first blocks\.1\.ffn\.value\.weight"):
        export_model(model, Damaged(), FP32, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_states_without_a_place_are_written_beside(tmp_path: Path):
    tuned = tiny_model("6", vocab_size=257, options={"train_states": True})
    save_weights(tmp_path / "rwkv-3.merged.pth", tuned.state_dict(), torch.float32)
    source = read_source(tmp_path / "rwkv-3.merged.pth")
    said: list[str] = []
    target = Untrue()
    target.wrong = 0.0
    export_model(source, target, FP32, tmp_path / "m.safetensors", say=said.append)
    assert not any(key.endswith("time_state") for key in load_weights(tmp_path / "m.safetensors"))
    beside = load_weights(tmp_path / "m.states.pth")
    assert list(beside) == [f"blocks.{layer}.att.time_state" for layer in range(2)]
    assert torch.equal(beside["blocks.1.att.time_state"], tuned.blocks[1].att.time_state)
    assert any("m.states.pth beside it" in line for line in said)


def test_states_stay_in_files_that_have_a_place_for_them(tmp_path: Path):
    tuned = tiny_model("7", vocab_size=257, options={"train_states": True})
    states = {k: v for k, v in tuned.state_dict().items() if k.endswith("time_state")}
    base = {k: v for k, v in tuned.state_dict().items() if k not in states}
    save_weights(tmp_path / "base.pth", base, torch.float32)
    save_weights(tmp_path / "states.pth", states, torch.float32)
    source = read_source(tmp_path / "base.pth", load_states=tmp_path / "states.pth")
    export_model(source, SafetensorsFile(), FP32, tmp_path / "m.safetensors")
    assert load_weights(tmp_path / "m.safetensors").keys() == tuned.state_dict().keys()


def test_states_of_another_model_are_refused(tmp_path: Path):
    save_weights(tmp_path / "base.pth", random_weights("6").state_dict(), torch.float32)
    other = {f"blocks.{layer}.att.time_state": torch.ones(4, 16, 16) for layer in range(2)}
    save_weights(tmp_path / "states.pth", other, torch.float32)
    with pytest.raises(CheckpointError, match=r"another model: .* \[4, 16, 16\], expected \[2, 32"):
        read_source(tmp_path / "base.pth", load_states=tmp_path / "states.pth")
    with pytest.raises(CheckpointError, match="give their base model as --load_model"):
        read_source(tmp_path / "states.pth")
    with pytest.raises(CheckpointError, match="holds more than trained initial states"):
        read_source(tmp_path / "base.pth", load_states=tmp_path / "base.pth")


def test_an_adapter_is_merged(tmp_path: Path):
    base = random_weights("6").state_dict()
    save_weights(tmp_path / "base.pth", base, torch.float32)
    pair = (torch.full((2, 64), 0.125), torch.full((64, 2), 0.5))
    adapter = Adapter(2.0, 2, {"blocks.0.att.key": pair})
    save_adapter(tmp_path / "a.lora.safetensors", adapter, torch.float32, "base.pth")
    source = read_source(tmp_path / "base.pth", lora=tmp_path / "a.lora.safetensors")
    expected = merge_adapter(base, adapter)
    assert all(torch.equal(source.weights[key], expected[key]) for key in expected)
    key = "blocks.0.att.key.weight"
    assert not torch.equal(source.weights[key], base[key])
    assert source.merged == ("a.lora.safetensors",)


def test_tensors_of_training_alone_are_made_again(tmp_path: Path):
    whole = random_weights("7").state_dict()
    dropped = [f"blocks.0.att.v{n}" for n in range(3)]
    kept = {key: value for key, value in whole.items() if key not in dropped}
    save_weights(tmp_path / "export.pth", kept, torch.bfloat16)
    source = read_source(tmp_path / "export.pth")
    assert list(source.weights) == list(whole)
    for key in dropped:
        assert source.weights[key].shape == whole[key].shape
        assert source.weights[key].dtype == torch.bfloat16
        assert not source.weights[key].any()


def test_what_other_programs_cannot_express_is_refused(tmp_path: Path, model: SourceModel):
    divided = replace(model, config=replace(model.config, head_size_divisor=4))
    copying = replace(model, config=replace(model.config, head_qk=16))
    reasons = {
        target.refuses(source, FP32)
        for target in TARGETS.values()
        for source in (divided, copying)
        if not isinstance(target, PthFile | SafetensorsFile)
    }
    assert None not in reasons
    # They are weights like others in a plain file, which only this program and RWKV-LM compute.
    assert PthFile().refuses(divided, FP32) is None
    unavailable = PthFile().logits(tmp_path / "m.pth", divided, [[1, 2]])
    assert isinstance(unavailable, Unavailable) and "head_size_divisor 4" in unavailable.reason


@pytest.mark.parametrize(
    ("out", "precision", "message"),
    [
        ("m.bin", "fp32", r"m\.bin: .* must end in \.safetensors"),
        ("nowhere/m.safetensors", "fp32", "nowhere is no folder"),
        ("random7.safetensors", "fp32", "exists already"),
        ("m.safetensors", "q8_0", "no --precision q8_0; choose from fp32, bf16, fp16"),
    ],
)
def test_a_wrong_place_or_format_is_refused(model, tmp_path: Path, out, precision, message):
    (tmp_path / "random7.safetensors").write_bytes(b"mine")
    options = ExportOptions(precision)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export_model(model, SafetensorsFile(), options, tmp_path / out, check=False)
    assert (tmp_path / "random7.safetensors").read_bytes() == b"mine"


def test_a_card_that_is_there_is_not_overwritten(model: SourceModel, tmp_path: Path):
    (tmp_path / "m.safetensors.README.md").write_text("mine")
    with pytest.raises(CheckpointError, match=r"m\.safetensors\.README\.md exists already"):
        export_model(model, SafetensorsFile(), FP32, tmp_path / "m.safetensors", check=False)
    assert (tmp_path / "m.safetensors.README.md").read_text() == "mine"
    assert not (tmp_path / "m.safetensors").exists()


def test_prompts_are_fixed_long_and_of_known_tokens(model: SourceModel):
    prompts = fixed_prompts(257, model.tokenizer)
    assert prompts == fixed_prompts(257, model.tokenizer)
    assert len(prompts) == 2
    assert all(len(tokens) > 64 and max(tokens) < 257 for tokens in prompts)
    assert fixed_prompts(50, None) == [
        tokens for tokens in fixed_prompts(50, None) if len(tokens) > 64
    ]


def test_targets_are_known_by_name():
    assert target_named("pth") is TARGETS["pth"]
    with pytest.raises(ConfigError, match="--to onnx is not known; choose from pth, "):
        target_named("onnx")


# Models with random weights: tests/models/test_rwkv_package.py.
@pytest.mark.parametrize("version", VERSIONS)
def test_the_rwkv_package_agrees_with_trained_models_in_both_modes(tmp_path: Path, version: str):
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    source = source_model(version, "trained", tmp_path)
    report = export_model(source, PthFile(), FP32, tmp_path / "m.pth")
    assert report is not None and report.at_once is not None and report.one_by_one is not None
    assert report.library == "rwkv 0.8.32"
    allowed = max(1e-4, 4 * report.ours.error)
    assert max(report.at_once.error, report.one_by_one.error) <= allowed
    assert report.at_once.same == report.at_once.tokens == 200
