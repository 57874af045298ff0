"""State tuning and LoRA on a frozen base model: what they learn of a new domain, what they cost.

    python -m benchmarks.finetune --text FILE [--versions 4567] [--steps 300] [--base_steps 600]
                                  [--modes states,lora] [--only learning|memory]

A tiny base model of every version learns Python's standard library as bytes; then its initial
states, or adapters beside it, learn FILE (any text; its last tenth is held out). Printed: the
share of parameters that is trained, the held-out loss of FILE before and after, and the largest
difference between the logits of the `rwkv` package for the written file and ours.

Then the memory at a shape whose weights outweigh everything else: whole runs of train.py, saves
included, in processes of their own. "resident" is the peak above what the process holds after its
imports; "tensors" are weights, gradients and moments counted from the parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import train
from make_data import main as make_data
from rwkv_train.checkpoint.names import merged_path
from rwkv_train.data.samples.dataset import ValidationDataset, evenly_spread_samples
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.text.demo_corpus import main as make_corpus
from rwkv_train.inference.loading import load_model
from rwkv_train.models.backbone import RWKV
from rwkv_train.ops.head_loss import Targets

CTX_LEN = 128
BATCH = 8
# Heads of 32 channels and adapters of rank 1 stay below 2 % of so small a model.
SHAPE = {"n_layer": 4, "n_embd": 128}
LARGE = {"n_layer": 8, "n_embd": 768}
MODES = {
    "states": {"train_type": "states", "lr_init": "0.3", "lr_final": "0.003"},
    "lora": {
        "train_type": "lora",
        "lora_r": 1,
        "lora_alpha": 2,
        "lr_init": "1e-2",
        "lr_final": "1e-3",
    },
}
FULL = {"lr_init": "2e-3", "lr_final": "2e-4"}

# argv: version, model without .pth, start or "", tokens. Prints the logits of all tokens.
PACKAGE_RUN = """
import sys, torch
version, path, start, tokens, out = sys.argv[1:]
from rwkv.model import RWKV
model = RWKV(path, "cpu fp32")
state = torch.load(start) if start else None
logits, _ = model.forward([int(t) for t in tokens.split(",")], state, full_output=True)
torch.save(logits, out)
"""

# argv: flags of train.py. Prints bytes: before the run, at its peak.
MEMORY_RUN = """
import json, resource, sys
import torch, train
import rwkv_train.training.run
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
status = train.main(sys.argv[1:])
print("\\n" + json.dumps([before, peak()]))
sys.exit(status)
"""


def flags(folder: Path, data: Path, steps: int, **more: object) -> list[str]:
    """Returns a command line of train.py."""
    values = {
        "proj_dir": folder,
        "data_file": data,
        "ctx_len": CTX_LEN,
        "micro_bsz": BATCH,
        "exit_tokens": steps * CTX_LEN * BATCH,
        "epoch_steps": steps,
        "epoch_save": 0,
        "warmup_steps": 10,
        "accelerator": "cpu",
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
        "enable_progress_bar": 0,
        "random_seed": 1,
        **more,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def shape_of(version: str, shape: dict) -> dict:
    """Returns the flags of a shape for one version."""
    heads = {} if version == "4" else {"head_size": 32}
    return {"rwkv_version": version, "vocab_size": 257, **shape, **heads}


def corpora(folder: Path, text: Path, megabytes: float) -> tuple[Path, Path]:
    """Prefixes of the Python corpus and of the new domain; the latter has a _val pair beside it."""
    make_corpus([str(folder / "python.jsonl"), "--max_megabytes", str(megabytes)])
    content = text.read_text(encoding="utf-8")
    cut = len(content) * 9 // 10
    for name, part in (("new", content[:cut]), ("new_val", content[cut:])):
        pieces = [part[i : i + 2000] for i in range(0, len(part), 2000)]
        lines = "\n".join(json.dumps({"text": piece}) for piece in pieces)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for name in ("python", "new", "new_val"):
        status = make_data(
            [
                str(folder / f"{name}.jsonl"),
                "1",
                str(CTX_LEN),
                "--output",
                str(folder / name),
                "--tokenizer",
                "bytes",
                "--seed",
                "1",
            ]
        )
        assert not status, f"make_data ended with status {status}"
    return folder / "python", folder / "new"


@torch.no_grad()
def held_out_loss(path: Path, prefix: Path) -> float:
    """Nats per byte of a model on 64 samples of the held-out text."""
    model = load_model(path, device=torch.device("cpu"), dtype=torch.float32)
    source = open_source(f"{prefix}_val", "binidx")
    data = ValidationDataset(source, CTX_LEN, evenly_spread_samples(source.tokens, CTX_LEN, 64))
    losses = [model.loss(s.tokens[None], Targets(s.targets[None])).item() for s in data]
    return sum(losses) / len(losses)


@torch.no_grad()
def package_difference(version: str, path: Path, folder: Path) -> float:
    """Returns the largest difference of logits, the rwkv package's to ours, over the largest."""
    model = load_model(path, device=torch.device("cpu"), dtype=torch.float32)
    tokens = list(b"First Citizen: Before we proceed any further, hear me speak.")
    start = ""
    if model.train_states and version in "47":
        # The package looks for states in RWKV-5 and 6 files only; else it is given them.
        start = str(folder / "start.pth")
        torch.save(package_start(model, version), start)
    command = [
        sys.executable,
        "-c",
        PACKAGE_RUN,
        version,
        str(path.with_suffix("")),
        start,
        ",".join(map(str, tokens)),
        str(folder / "logits.pth"),
    ]
    environment = {
        **os.environ,
        "RWKV_CUDA_ON": "0",
        "RWKV_JIT_ON": "0",
        "RWKV_V7_ON": "1" if version == "7" else "0",
    }
    subprocess.run(command, env=environment, check=True, capture_output=True)
    theirs = torch.load(folder / "logits.pth")
    ours = model(torch.tensor([tokens]))[0][0]
    return ((theirs - ours).abs().max() / ours.abs().max()).item()


def package_start(model: RWKV, version: str) -> list[torch.Tensor]:
    """Returns the list of trained states that the package starts from."""
    zero = torch.zeros(model.config.n_embd)
    flat = []
    for block in model.blocks:
        learnt = block.att.time_state
        wkv = (learnt[0], torch.ones_like(learnt[0]), learnt[1]) if version == "4" else (learnt,)
        flat += [zero.clone(), *(part.clone() for part in wkv), zero.clone()]
    return flat


def tensor_bytes(folder: Path, kind: str) -> int:
    """Returns fp32 bytes of weights, gradients and two moments, as the run of `kind` holds them."""
    names = {"full": "rwkv-final.pth", "lora": "rwkv-final.pth", "states": "rwkv-final.merged.pth"}
    total = sum(t.numel() for t in torch.load(folder / names[kind], weights_only=True).values())
    state = torch.load(folder / "rwkv-final.state", weights_only=True, mmap=True)
    trained = sum(t.numel() for t in state["weights"].values())
    own = trained if kind == "lora" else 0
    return 4 * (total + own + 3 * trained)


def memory(version: str, data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Prints the peak of every mode, and its share of full finetuning's."""
    large = {**LARGE, "ctx_len": 128, "micro_bsz": 1, "exit_tokens": 3 * 128, "epoch_steps": 3}
    base = folder / f"large{version}"
    first = {**shape_of(version, large), "train_stage": 1}
    assert train.main(flags(base, data, 3, **first)) == 0
    peaks = {}
    for kind, more in {"full": FULL, **MODES}.items():
        out = folder / f"large{version}-{kind}"
        argv = flags(
            out,
            data,
            3,
            **{**large, **more},
            load_model=base / "rwkv-init.pth",
            grad_cp=options.grad_cp,
        )
        done = subprocess.run(
            [sys.executable, "-c", MEMORY_RUN, *argv], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        before, peak = json.loads(done.stdout.strip().splitlines()[-1])
        peaks[kind] = (peak - before, tensor_bytes(out, kind))
    for kind, (resident, tensors) in peaks.items():
        print(
            f"RWKV-{version}  {kind:<8}{resident / 2**20:>9.0f} MiB resident"
            f"{resident / peaks['full'][0]:>7.0%}{tensors / 2**20:>9.0f} MiB tensors"
            f"{tensors / peaks['full'][1]:>7.0%}",
            flush=True,
        )


def learning(
    version: str, python: Path, new: Path, folder: Path, options: argparse.Namespace
) -> None:
    """Prints what each mode learns."""
    base = folder / f"base{version}"
    argv = flags(base, python, options.base_steps, **shape_of(version, SHAPE), **FULL)
    assert train.main(argv) == 0
    before = held_out_loss(base / "rwkv-final.pth", new)
    for kind in options.modes.split(","):
        more = MODES[kind]
        out = folder / f"{kind}{version}"
        argv = flags(out, new, options.steps, **more, load_model=base / "rwkv-final.pth")
        assert train.main(argv) == 0
        final = out / "rwkv-final.pth"
        whole = merged_path(final) if kind == "states" else final
        state = torch.load(out / "rwkv-final.state", weights_only=True)
        trained = sum(t.numel() for t in state["weights"].values())
        total = sum(t.numel() for t in torch.load(whole, weights_only=True).values())
        print(
            f"RESULT RWKV-{version}  {kind:<8}{trained:>8,} of {total:,} trained "
            f"({trained / total:.2%})  loss {before:.4f} -> {held_out_loss(whole, new):.4f}  "
            f"rwkv package differs by {package_difference(version, whole, folder):.1e}",
            flush=True,
        )


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="the new domain, plain text")
    parser.add_argument("--versions", default="4567")
    parser.add_argument("--base_steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--grad_cp", type=int, default=0)
    parser.add_argument("--modes", default="states,lora", help="what learns, by comma")
    parser.add_argument("--only", choices=("learning", "memory"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python, new = corpora(folder, options.text, options.megabytes)
        for version in options.versions:
            if options.only != "memory":
                learning(version, python, new, folder, options)
            if options.only != "learning":
                memory(version, python, folder, options)


if __name__ == "__main__":
    main()
