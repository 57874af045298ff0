"""`rwkv_train.load_model` gives all that a text needs, and the import alone costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rwkv_train
from rwkv_train.checkpoint.adapter_files import merge_adapter, save_adapter, split_adapter
from rwkv_train.config.schema import AdapterConfig
from rwkv_train.errors import ConfigError
from rwkv_train.models.adapters import attach_adapters
from tests.models.tiny import VERSIONS, tiny_model

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("version", VERSIONS)
def test_model_tokenizer_and_state_are_those_of_the_checkpoint(tmp_path: Path, version: str):
    network = tiny_model(version, vocab_size=257, options={"train_states": True})
    torch.save(network.state_dict(), tmp_path / "rwkv-final.pth")
    model, tokenizer, state = rwkv_train.load_model(tmp_path / "rwkv-final.pth", device="cpu")
    assert tokenizer.name == "bytes"
    with torch.no_grad():
        expected, _ = network(TOKENS)
        found, _ = model(TOKENS, state)
    assert torch.equal(found, expected)


def test_an_adapter_joins_its_base_model(tmp_path: Path):
    model = tiny_model("7", vocab_size=257)
    torch.save(model.state_dict(), tmp_path / "base.pth")
    attach_adapters(model, AdapterConfig(lora_r=4, lora_alpha=8), [], seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=generator)
    base, adapter = split_adapter(model.state_dict(), 2.0, {})
    path = tmp_path / "rwkv-final.lora.safetensors"
    save_adapter(path, adapter, torch.float32, "base.pth")
    loaded = rwkv_train.load_model(tmp_path / "base.pth", lora=path, device="cpu").model
    merged = merge_adapter(base, adapter)
    assert not torch.equal(merged["blocks.0.att.key.weight"], base["blocks.0.att.key.weight"])
    assert all(torch.equal(value, merged[name]) for name, value in loaded.state_dict().items())


def test_an_unknown_device_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="device is 'tpu', expected one of auto, cpu, cuda"):
        rwkv_train.load_model(tmp_path / "x.pth", device="tpu")


def test_the_import_alone_brings_no_torch():
    program = "import sys, rwkv_train; print('torch' in sys.modules, rwkv_train.__all__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("False ["), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = rwkv_train.load_modell
