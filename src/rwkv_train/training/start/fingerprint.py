"""Agreement of all ranks before the first step, compared name by name.

Machines that do not share a folder, flags, data or code would train on: with losses that look
right, until one of them waits for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rwkv_train.checkpoint.resume import state_digest
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_differences import leaf_values
from rwkv_train.config.run_length import run_length
from rwkv_train.errors import ConfigError
from rwkv_train.training.distributed.rank_store import RankFault, RankStore, RemoteRankError
from rwkv_train.training.start.open_data import RunSamples
from rwkv_train.training.start.resume_point import FromState, FromWeights, ResumePoint
from rwkv_train.training.start.resume_progress import resume_progress
from rwkv_train.training.start.shared_start import weights_digest
from rwkv_train.version import code_version

# May differ between machines: what rank zero alone reads, and where things lie.
_OF_A_MACHINE = {
    "proj_dir": "the folder of rank zero counts",
    "load_model": "its weights are compared",
    "data_file": "its tokens are compared",
    "val_data_file": "its tokens are compared",
    "state_copies": "rank zero's places count",
    "copies_wait_minutes": "rank zero waits",
    "accept_changes": "it changes nothing",
    "num_workers": "it changes nothing",
    "keep_heap": "it changes nothing",
    "wandb": "rank zero logs",
    "wandb_mode": "rank zero logs",
    "tensorboard": "rank zero logs",
    "run_name": "rank zero logs",
    "profile": "rank zero profiles",
    "measure_rate": "rank zero measures",
    "enable_progress_bar": "rank zero prints",
    "plot": "rank zero draws",
    "report": "rank zero writes",
    "eval_include": "rank zero evaluates",
    "sample_prompts": "rank zero writes",
}


def run_fingerprint(
    config: ResolvedConfig, point: ResumePoint, samples: RunSamples
) -> dict[str, str]:
    """Returns name -> value of everything that has to be equal on all ranks."""
    length = run_length(config)
    found = {
        "resume point": _describe(point),
        "step": str(resume_progress(point, config, length).progress.step),
        "weights": _weights(point),
        "length of the run": f"{length.total_steps} steps of {length.tokens_per_step} tokens",
    }
    for role, parts in samples.identities().items():
        # Everything but the name.
        contents = [{k: v for k, v in part.items() if k != "name"} for part in parts]
        tokens = sum(part["tokens"] for part in parts)
        found[f"{role} data"] = f"{tokens:,} tokens, {_short(contents)}" if parts else "none"
    for name, value in leaf_values(config).items():
        if name not in _OF_A_MACHINE:
            found[f"--{name}"] = str(value)
    found["code"] = f"{code_version()}, sources {_sources()}"
    found["torch"] = torch.__version__
    return found


def require_agreement(ranks: RankStore, own: Mapping[str, str]) -> None:
    """Raises ConfigError on rank zero when a rank has another fingerprint. Collective.

    The others raise RemoteRankError.
    """
    answers = ranks.gather("fingerprint", {"host": ranks.host, "values": dict(own)})
    hosts = [answer["host"] for answer in answers]
    difference = first_difference([answer["values"] for answer in answers], hosts)
    if difference is None:
        return
    # All of them know, so that none has to be told; one tells people.
    if ranks.rank == 0:
        raise ConfigError(difference)
    raise RemoteRankError(RankFault(0, hosts[0], difference, status=2))


def first_difference(values: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> str | None:
    """Returns the first thing in which a rank differs from rank zero, in a line; None: in nothing.

    values: name -> value of every rank.
    """
    for rank, own in enumerate(values):
        for name in dict.fromkeys([*values[0], *own]):
            first, other = values[0].get(name, "none"), own.get(name, "none")
            if first != other:
                return (
                    f"rank {rank} on {hosts[rank]} differs from rank 0 on {hosts[0]} in {name}:"
                    f" {other} there, {first} here; all ranks need the same flags, data, code and"
                    " --proj_dir contents: share the folder, or copy what differs"
                )
    return None


def _describe(point: ResumePoint) -> str:
    if point.kind == "fresh":
        return "new initial weights"
    return f"{point.kind} of {point.path.name}"


def _weights(point: ResumePoint) -> str:
    """Returns a digest of what the run starts from, for which large files are not read again."""
    if isinstance(point, FromState):
        return state_digest(point.path)[:12]
    if isinstance(point, FromWeights):
        return _short([*map(weights_digest, point.files)])
    return "of --random_seed"


def _sources() -> str:
    """Returns a digest of the package's sources, which a checkout may have changed."""
    folder = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _short(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]
