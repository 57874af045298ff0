"""The recipes in configs/ load, and resolve to what their comments promise."""

from __future__ import annotations

import dataclasses

import pytest

from rwkv_train.config.discovered import DataDiscovered, Discovered
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.run_length import global_batch, tokens_per_step, total_steps, windows_per_row
from rwkv_train.config.rwkv_lm.flags import FLAGS
from rwkv_train.config.schema import ModelConfig
from rwkv_train.errors import ConfigError
from tests.checkout import ROOT
from tests.config.resolving import MINIPILE, but, found

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def recipe(name, *flags):
    return load_config([f"--config={ROOT}/configs/{name}.yaml", *flags])


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == [
        "demo-cpu",
        "enlarge",
        "finetune",
        "long-context",
        "lora",
        "mixture",
        "mqar",
        "pretrain-12x768",
        "sft",
        "states",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run(path):
    assert f"python train.py --config configs/{path.name}" in path.read_text(encoding="utf-8")


def test_the_cpu_demo_fits_a_cpu():
    discovered = Discovered(DataDiscovered(token_count=3_000_000, best_prime=11717, vocab_size=257))
    config, _ = resolve(recipe("demo-cpu", "--data_file", "text"), discovered)
    assert (config.hardware.accelerator, config.hardware.precision) == ("cpu", "fp32")
    assert (config.model.rwkv_version, config.model.vocab_size) == ("6", 257)
    assert total_steps(config) == 1465  # ceil(3000000 / 2048)


def test_the_demo_of_rwkv_lm_has_its_length_and_batch():
    gpu = but(MINIPILE, gpu_count=1, gpu_has_bf16=True)
    config, _ = resolve(recipe("pretrain-12x768"), gpu)
    assert (global_batch(config), config.train.epoch_steps) == (16, 2520)
    assert (config.data.magic_prime, total_steps(config)) == (2926181, 182889)


def test_finetuning_takes_the_shape_of_the_model_and_goes_on_by_the_same_line():
    flags = ("--data_file", "mine", "--load_model", "base.pth")
    base = but(MINIPILE, best_prime=365759)
    config, _ = resolve(recipe("finetune", *flags), found("weights", path="base.pth", base=base))
    assert (config.model.n_layer, config.model.n_embd, global_batch(config)) == (24, 2048, 16)
    later = found("state", 3, "out/finetune/rwkv-3.state", base)
    resumed, _ = resolve(recipe("finetune", *flags), later)
    assert resumed.train.epoch_begin == 4


def test_long_context_is_read_in_chunks_and_may_be_truncated():
    base = but(MINIPILE, best_prime=22859, gpu_count=1, gpu_has_bf16=True)
    discovered = found("weights", path="base.pth", base=base)
    flags = ("--data_file", "books", "--load_model", "base.pth")
    config, _ = resolve(recipe("long-context", *flags), discovered)
    assert (tokens_per_step(config), config.train.chunk_len) == (8 * 65536, 4096)
    config, _ = resolve(recipe("long-context", *flags, "--bptt_chunks", "4"), discovered)
    assert (tokens_per_step(config), windows_per_row(config)) == (8 * 16384, 4)


def test_learning_answers_refuses_data_without_a_mask():
    base = but(MINIPILE, best_prime=365759, has_loss_mask=True)
    flags = ("--data_file", "mine", "--load_model", "base.pth")
    config, _ = resolve(recipe("sft", *flags), found("weights", path="base.pth", base=base))
    assert (config.data.loss_mask, config.data.reset_at_documents) == ("on", True)
    base = but(base, has_loss_mask=False)
    unmasked = found("weights", path="base.pth", base=base)
    with pytest.raises(ConfigError, match=r"--loss_mask on: there is no \.mask next to mine"):
        resolve(recipe("sft", *flags), unmasked)


@pytest.mark.parametrize("kind", ["lora", "states"])
def test_frozen_models_are_trained_as_the_recipe_says(kind):
    flags = ("--data_file", "mine", "--load_model", "base.pth")
    base = but(MINIPILE, best_prime=731477)
    config, _ = resolve(recipe(kind, *flags), found("weights", path="base.pth", base=base))
    assert (config.train.train_type, config.model.n_layer) == (kind, 24)


def test_a_larger_model_is_made_and_then_trained():
    small = ModelConfig(rwkv_version="7", n_layer=12, n_embd=768, vocab_size=65536, head_size=64)
    made, _ = resolve(
        recipe("enlarge", "--load_model", "small.pth"), but(Discovered(), donor_model=small)
    )
    assert (made.model.n_layer, made.model.rwkv_version) == (24, "7")
    large = dataclasses.replace(small, n_layer=24, n_embd=1024)
    discovered = found("weights", model=large, path="out/enlarged/rwkv-init.pth")
    flags = ("--train_stage", "3", "--data_file", "data/minipile")
    assert resolve(recipe("enlarge", *flags), discovered)[0].model.n_embd == 1024


def test_the_page_on_flags_explains_every_flag_of_rwkv_lm():
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert [name for name in FLAGS if f"`--{name}`" not in page] == []
