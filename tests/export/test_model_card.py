"""A model card states the run's facts, and no more than is known."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.config.load import dump_config
from rwkv_train.config.schema import DataConfig, RunConfig, TrainConfig
from rwkv_train.export.model_card import model_card
from rwkv_train.export.model_source import read_source
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.plain_weights import PthFile
from rwkv_train.export.verification import Agreement, LogitsReport
from tests.export.exported_models import random_weights

RECORDS = [
    {"step": 0, "loss": 5.5, "tokens": 512},
    {"step": 1, "skipped": True},
    {"step": 1, "loss": 4.25, "tokens": 1024},
    {"step": 1, "val_loss": 4.5, "val_bits_per_byte": 6.25},
    {"step": 2, "loss": 3.125, "tokens": 1536},
    {"step": 2, "val_loss": 3.5, "val_bits_per_byte": 5.0},
]


def card_of(folder: Path, name: str, about: dict | None) -> str:
    save_weights(folder / name, random_weights("6").state_dict(), torch.float32, about)
    source = read_source(folder / name)
    report = LogitsReport(library="rwkv 0.8.32", at_once=Agreement(2e-6, 79, 80), largest=1e-4)
    return model_card("m.pth", source, PthFile(), ExportOptions("bf16"), report)


def write_run(folder: Path) -> None:
    data = DataConfig(data_file="secret/place/corpus", ctx_len=128)
    train = TrainConfig(load_model="secret/place/base.pth")
    config = RunConfig(data=data, train=train)
    (folder / "config.yaml").write_text(dump_config(config))
    lines = "\n".join(json.dumps(record) for record in RECORDS)
    # The last line was being written when the run was killed.
    (folder / "metrics.jsonl").write_text(f'{lines}\n{{"step": 3, "lo')
    (folder / "starts.jsonl").write_text('{"from": "rwkv-init.pth", "code_version": "9.9.9"}\n')


def test_it_tells_what_is_known_of_the_checkpoint_itself(tmp_path: Path):
    write_run(tmp_path)
    card = card_of(tmp_path, "rwkv-3.pth", {"epoch": 3, "tokens": 1024})
    rows = dict(
        tuple(part.strip() for part in line.strip("|").split("|"))
        for line in card.splitlines()
        if line.startswith("|") and line.count("|") == 3
    )
    assert rows["data"] == "`corpus`" and rows["base model"] == "`base.pth`"
    # Of the mini-epoch that the file was written after, not of the run's end.
    assert rows["tokens read"] == "1,024 in 2 steps"
    assert rows["training loss"].startswith("4.2500 nats")
    assert rows["validation loss"] == "4.5000 nats per token, 6.2500 bits per byte"
    assert rows["began from"] == "fresh weights" and rows["trained by"] == "rwkv-train 9.9.9"
    assert rows["sample length"] == "128 tokens"
    count = sum(p.numel() for p in random_weights("6").parameters())
    assert rows["parameters"] == f"{count:,}, stored as bf16"
    assert rows["layers, width"] == "2, 64" and rows["heads"] == "2 of 32"


def test_it_is_a_card_of_the_hub_and_asks_for_a_license(tmp_path: Path):
    write_run(tmp_path)
    card = card_of(tmp_path, "rwkv-final.pth", None)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["rwkv", "rwkv-6"],
    }
    assert "**License.** Not stated." in card
    assert "1,536 in 3 steps" in card
    assert "rwkv 0.8.32" in card and "2.0e-06   same likeliest token at 79 of 80" in card
    # A card is published, and a path tells of the machine.
    assert "secret" not in card


def test_of_a_numbered_file_without_words_about_itself_no_loss_is_told(tmp_path: Path):
    write_run(tmp_path)
    card = card_of(tmp_path, "rwkv-1.pth", None)
    assert "training loss" not in card and "sample length" in card


def test_without_a_run_it_says_that_nothing_is_known(tmp_path: Path):
    assert "Nothing is known" in card_of(tmp_path, "model.pth", None)
    write_run(tmp_path)
    # A file of somebody else that lies in a run's folder is not the run's.
    assert "Nothing is known" in card_of(tmp_path, "kept-1-model.pth", None)
