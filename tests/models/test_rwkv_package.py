"""The `rwkv` package reads our fp32 checkpoints and computes the same; a process per version.

The package decides its version when it is imported, and RWKV-7 by an environment variable.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.models.rwkv_package import state_to_rwkv_package
from tests.helpers import assert_close
from tests.models.tiny import UNEQUAL_RANKS, VERSIONS, random_tokens, tiny_model

pytest.importorskip("rwkv", reason="the rwkv package is not installed")

TOKENS = 21
CUT = 13

# argv: version, folder, names of models. Reads model-NAME.pth and job-NAME.pth, writes
# result-NAME.pth.
PACKAGE_RUN = """
import sys, torch
version, folder, *counts = sys.argv[1:]
from rwkv.model import RWKV
for count in counts:
    model = RWKV(f"{folder}/model-{count}", "cpu fp32")
    job = torch.load(f"{folder}/job-{count}.pth")
    tokens, cut = job["tokens"].tolist(), job["cut"]
    start = lambda: job["start"] and [t.clone() for t in job["start"]]
    at_once, state = model.forward(list(tokens), start(), full_output=True)
    one_by_one, walking = [], start()
    for token in tokens:
        logits, walking = model.forward([token], walking)
        one_by_one.append(logits.clone())
    resumed, _ = model.forward(tokens[cut:], [t.clone() for t in job["state"]], full_output=True)
    torch.save({"at_once": at_once, "one_by_one": torch.stack(one_by_one),
                "resumed": resumed, "state": list(state)}, f"{folder}/result-{count}.pth")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """version -> layers -> (our model, the package's results)."""
    done = {}

    def run(version):
        if version not in done:
            done[version] = compute(version, tmp_path_factory.mktemp(f"rwkv{version}"))
        return done[version]

    return run


def compute(version, folder):
    ranks = UNEQUAL_RANKS[version]
    models = {layers: tiny_model(version, n_layer=layers, **ranks) for layers in (1, 3)}
    models["tuned"] = tiny_model(version, options={"train_states": True})
    tokens = random_tokens(1, TOKENS)
    for layers, model in models.items():
        save_weights(folder / f"model-{layers}.pth", model.state_dict(), torch.float32)
        _, state = model(tokens[:, :CUT])
        # RWKV-5 and 6 find trained states in the file, 4 and 7 are given them as a list.
        given = layers == "tuned" and version in "47"
        job = {
            "tokens": tokens[0],
            "cut": CUT,
            "state": state_to_rwkv_package(state, version),
            "start": trained_start(model) if given else None,
        }
        torch.save(job, folder / f"job-{layers}.pth")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RWKV_CUDA_ON": "0",
        "RWKV_JIT_ON": "0",
        "RWKV_V7_ON": "1" if version == "7" else "0",
    }
    command = [sys.executable, "-c", PACKAGE_RUN, version, str(folder), *map(str, models)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {
        layers: (model, torch.load(folder / f"result-{layers}.pth"))
        for layers, model in models.items()
    }


def trained_start(model):
    """The list that the package starts from."""
    zero = torch.zeros(64)
    flat = []
    for block in model.blocks:
        learnt = block.att.time_state.detach()
        is_4 = model.config.rwkv_version == "4"
        wkv = (learnt[0], torch.ones(64), learnt[1]) if is_4 else (learnt,)
        flat += [zero.clone(), *(part.clone() for part in wkv), zero.clone()]
    return flat


each_model = pytest.mark.parametrize(
    ("version", "layers"), [(version, layers) for version in VERSIONS for layers in (1, 3, "tuned")]
)


@each_model
@pytest.mark.parametrize("mode", ["at_once", "one_by_one"])
def test_the_package_gives_our_logits(runs, version, layers, mode):
    model, theirs = runs(version)[layers]
    with torch.no_grad():
        ours, _ = model(random_tokens(1, TOKENS))
    assert_close(mode, theirs[mode], ours[0], 1e-4)
    difference = (theirs[mode] - ours[0]).abs().max()
    assert difference <= 1e-4 * ours.abs().max()


@each_model
def test_the_package_ends_in_our_state(runs, version, layers):
    model, theirs = runs(version)[layers]
    _, state = model(random_tokens(1, TOKENS))
    ours = state_to_rwkv_package(state, version)
    for number, (a, e) in enumerate(zip(theirs["state"], ours, strict=True)):
        assert_close(f"entry {number}", a, e, 1e-4)


@each_model
def test_the_package_goes_on_from_our_state(runs, version, layers):
    model, theirs = runs(version)[layers]
    with torch.no_grad():
        ours, _ = model(random_tokens(1, TOKENS))
    assert_close("resumed", theirs["resumed"], ours[0, CUT:], 1e-4)
