"""Finds where all ranks begin: at the newest state of any, which machines without it are sent.

So a folder that all machines share is needed for nothing but reading data: a launcher that starts
anew may make any machine the first, also one with an empty disk. Without a state it is rank zero's
resume point. What is on a machine of another run is not passed over: `fingerprint` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rwkv_train.checkpoint.digest import sampled_file_digest
from rwkv_train.checkpoint.lazy_tensors import shapes_of
from rwkv_train.checkpoint.names import FINAL, is_state
from rwkv_train.checkpoint.resume import list_states, load_state, resume_candidates, state_digest
from rwkv_train.checkpoint.state_folder import VerifyParts
from rwkv_train.checkpoint.weight_folder import weight_files
from rwkv_train.checkpoint.weights import read_shapes
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, TrainerError
from rwkv_train.training.distributed.file_transfer import ReceivedFiles, SentFile, receive_missing
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.start.joint_verification import JointVerification
from rwkv_train.training.start.resume_point import (
    FromState,
    FromWeights,
    ResumePoint,
    find_resume_point,
)


def find_shared_start(
    train: TrainConfig, ranks: Ranks, received: ReceivedFiles, places: Sequence[Path] = ()
) -> ResumePoint:
    """Returns where this rank begins, with files that another has sent if need be. Collective.

    received: keeps them, which are in use until the model is made. places: folders of second
    copies. Raises as `find_resume_point`.
    """
    if ranks.launch.world_size == 1 or train.train_stage == 1:
        return find_resume_point(train, places)
    point, fault = None, None
    with JointVerification(ranks) as verify:
        try:
            point = find_resume_point(train, places, verify)
        except TrainerError as error:
            fault = error
    own = None if point is None else _offer(point)
    offers = ranks.store.gather("start", own)
    source = _source(offers)
    offer = offers[source]
    if offer is None and ranks.launch.rank != 0:
        # Rank zero leaves, and says why.
        ranks.store.gather("lacks", None)
    lacks = offer is not None and _lacks(offer, own, train)
    if fault is not None and not lacks:
        raise fault
    files = [SentFile(*file) for file in offer["files"]]
    sent = receive_missing(ranks, received, files, lacks, _what(offer), source)
    with JointVerification(ranks) as verify:
        found = None if sent is None else _received_point(offer, sent, train, verify)
    if found is not None:
        return found if ranks.launch.rank else replace(found, notes=_notes(offer, own, source))
    assert point is not None, "a rank without one lacks it"
    return point


def _source(offers: Sequence[Mapping[str, Any] | None]) -> int:
    """Returns the rank whose resume point is that of all: rank zero, or one with a newer state.

    States of several runs are left to people: then it is rank zero.
    """
    states = {
        rank: offer for rank, offer in enumerate(offers) if offer and offer["kind"] == "state"
    }
    runs = {offer["run"] for offer in states.values()}
    if len(runs) != 1 or None in runs:
        return 0
    return max(states, key=lambda rank: (states[rank]["position"], -rank))


def _notes(offer: Mapping[str, Any], own: Mapping[str, Any] | None, source: int) -> tuple[str, ...]:
    """Returns the notes of rank zero when it is another rank's state that the run goes on from."""
    here = "has none"
    if own is not None and own["kind"] == "state":
        here = f"has the older {own['name']}"
    return (f"the newest state, {offer['name']}, is that of rank {source}; rank 0 {here}",)


def find_shared_state(path: Path, ranks: Ranks, received: ReceivedFiles) -> Path:
    """Returns where this rank has a state that rank zero has at `path`. Collective.

    It is sent to those who have it not. Raises CheckpointError.
    """
    if ranks.launch.world_size == 1:
        return path
    own = None
    with suppress(CheckpointError):
        own = state_digest(path)
    first = ranks.launch.rank == 0
    files = _sent(path, path.name) if first else []
    digest, name, sent = ranks.store.gather("state", [own, path.name, files])[0]
    files = [SentFile(*file) for file in sent]
    what = f"not the state that the run goes back to: receives {name}"
    folder = receive_missing(ranks, received, files, own != digest, what)
    return path if folder is None else folder / name


def _what(offer: Mapping[str, Any]) -> str:
    what = "no state of this run" if offer["kind"] == "state" else "not the weights it starts from"
    return f"{what}: receives {offer.get('name')}"


def _offer(point: ResumePoint) -> dict[str, Any]:
    """Returns what tells a resume point from others, and the files that it is made of."""
    if isinstance(point, FromState):
        paths = [point.path, *([point.base] if point.base else [])]
        state = point.state
        return {
            "kind": point.kind,
            "name": point.path.name,
            "epoch": point.epoch,
            "digests": [state_digest(point.path), *map(weights_digest, paths[1:])],
            "run": state.get("run"),
            "position": state["step"] * state.get("tokens_per_step", 1),
            **_files(paths),
        }
    if isinstance(point, FromWeights):
        return {
            "kind": point.kind,
            "name": point.path.name,
            "epoch": point.epoch,
            "digests": [*map(weights_digest, point.files)],
            "tokens": point.tokens,
            "keeps_base": point.keeps_base,
            "place": point.files.index(point.path),
            **_files(point.files),
        }
    return {"kind": point.kind, "files": []}


def weights_digest(path: Path) -> str:
    """Returns a digest of a file of weights, or of those in a folder, not read as a whole."""
    return " ".join(sampled_file_digest(file) for file in weight_files(path))


def _files(paths: Sequence[Path]) -> dict[str, Any]:
    """Returns the files of a state or of weights, which may be folders, and what each is called."""
    roots = [f"{number}/{path.name}" for number, path in enumerate(paths)]
    files = [file for root, path in zip(roots, paths) for file in _sent(path, root)]
    return {"files": files, "roots": roots}


def _sent(path: Path, root: str) -> list[SentFile]:
    """Returns the file at `path`, or those in the folder there, as they are called on their way."""
    if not path.is_dir():
        parts = [path]
    elif is_state(path.name):
        parts = sorted(path.iterdir())
    else:
        parts = [*weight_files(path), *sorted(path.glob("*.json"))]
    names = [f"{root}/{part.name}" if path.is_dir() else root for part in parts]
    return [SentFile(n, str(p.resolve()), p.stat().st_size) for n, p in zip(names, parts)]


def _lacks(offer: Mapping[str, Any], own: Mapping[str, Any] | None, train: TrainConfig) -> bool:
    """Tells whether this rank has nothing that the files offered would pass over.

    own: what it would begin with; None: there is none, or it cannot be used.
    """
    if offer["kind"] == "fresh" or (own is not None and own.get("digests") == offer["digests"]):
        return False
    if own is not None and own["kind"] == "state":
        # An older one of the same run, from before its machine changed places.
        same = own["run"] is not None and own["run"] == offer.get("run")
        return bool(same and own["position"] < offer["position"])
    folder = Path(train.proj_dir)
    if list_states(folder) or resume_candidates(folder) or (folder / FINAL).exists():
        return False
    if own is None:
        # What was given and cannot be used is a fault of this machine, and is told.
        return train.load_model is None or not Path(train.load_model).exists()
    # Initial weights hold no work; but where others have such too they ought to be the same.
    return bool(own["kind"] == "fresh" or offer["kind"] == "state")


def _received_point(
    offer: Mapping[str, Any], sent: Path, train: TrainConfig, verify: VerifyParts
) -> ResumePoint:
    """Returns another rank's resume point, made from its files in the folder `sent`."""
    folder = Path(train.proj_dir)
    paths = [sent / name for name in offer["roots"]]
    if offer["kind"] == "state":
        state = load_state(paths[0], verify)
        shapes = shapes_of(state["weights"])
        base = paths[1] if len(paths) > 1 else None
        if base is not None:
            shapes = {**read_shapes(base), **shapes}
        return FromState(paths[0], offer["epoch"], shapes, state, folder, base)
    shapes = {name: shape for path in paths for name, shape in read_shapes(path).items()}
    return FromWeights(
        paths[offer["place"]],
        offer["epoch"],
        shapes,
        tuple(paths),
        folder,
        offer["keeps_base"],
        offer["tokens"],
    )
