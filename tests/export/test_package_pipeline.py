"""The `rwkv` package's PIPELINE writes our text from exported models, as its README shows it.

With trained initial states: RWKV-5 and 6 find them in the file, 4 and 7 are given a list.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.data.tokenize.tokenizer import BytesTokenizer
from rwkv_train.export.exporting import export_model
from rwkv_train.export.model_source import read_source
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.targets.package_client import package_start
from rwkv_train.export.targets.plain_weights import PthFile
from rwkv_train.export.tokenizer_folder import tokenizer_definition
from rwkv_train.inference.generate import generate_tokens
from rwkv_train.inference.loading import load_model
from rwkv_train.inference.sampling import Sampler, SamplingOptions
from tests.models.tiny import VERSIONS, tiny_model

pytest.importorskip("rwkv", reason="the rwkv package is not installed")

PROMPT = "你好:"
COUNT = 12
# argv: versions. Each reads rwkv-N.pth and start-N.pth of the folder it runs in.
PIPELINE_RUN = f"""
import json, sys, torch
from rwkv.model import RWKV
from rwkv.utils import PIPELINE, PIPELINE_ARGS
texts = {{}}
for version in sys.argv[1:]:
    pipeline = PIPELINE(RWKV(f"rwkv-{{version}}", "cpu fp32"), "tokenizer.json")
    args = PIPELINE_ARGS(top_p=0, alpha_frequency=0, alpha_presence=0, token_stop=[0], chunk_len=3)
    start = torch.load(f"start-{{version}}.pth")
    texts[version] = pipeline.generate({PROMPT!r}, {COUNT}, args, state=start)
print(json.dumps(texts))
"""


def visible_model(version: str):
    """Returns a model with trained states that writes tokens of one ASCII letter only."""
    model = tiny_model(version, vocab_size=257, options={"train_states": True})
    letters = torch.arange(ord("!") + 1, ord("~") + 2)
    with torch.no_grad():
        kept = model.head.weight[letters].clone()
        model.head.weight.zero_()
        model.head.weight[letters] = kept
        for block in model.blocks:
            # Else the prompt would wash RWKV-7's away.
            block.att.time_state *= 20
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The exported models of all versions, and the states that the package is given."""
    folder = tmp_path_factory.mktemp("pipeline")
    definition = json.dumps(tokenizer_definition(BytesTokenizer()))
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    for version in VERSIONS:
        save_weights(folder / "tuned.pth", visible_model(version).state_dict(), torch.float32)
        source = read_source(folder / "tuned.pth")
        out = folder / f"rwkv-{version}.pth"
        options = ExportOptions("fp32")
        export_model(source, PthFile(), options, out, check=False, card=False)
        torch.save(package_start(source), folder / f"start-{version}.pth")
    return folder


def our_text(path: Path, *, with_states: bool = True) -> str:
    model = load_model(path, device=torch.device("cpu"), dtype=torch.float32)
    if not with_states:
        for block in model.blocks:
            block.att.time_state.zero_()
    tokenizer = BytesTokenizer()
    sampler = Sampler(SamplingOptions(temperature=0), torch.Generator())
    return tokenizer.decode(generate_tokens(model, tokenizer.encode(PROMPT), sampler, COUNT))


# The package decides by an environment variable, when it is imported, whether a model is RWKV-7.
@pytest.mark.parametrize("versions", [("4", "5", "6"), ("7",)], ids="-".join)
def test_the_pipeline_writes_our_text_with_trained_states(folder: Path, versions: tuple[str, ...]):
    settings = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": str(int("7" in versions))}
    ran = subprocess.run(
        [sys.executable, "-c", PIPELINE_RUN, *versions],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    theirs = json.loads(ran.stdout.splitlines()[-1])
    ours = {version: our_text(folder / f"rwkv-{version}.pth") for version in versions}
    assert theirs == ours
    assert all(len(set(text)) > 3 for text in ours.values())
    for version, text in ours.items():
        assert our_text(folder / f"rwkv-{version}.pth", with_states=False) != text
