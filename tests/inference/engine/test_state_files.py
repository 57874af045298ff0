"""A sequence's state on disk is the same state, and of its own model only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwkv_train.errors import CheckpointError
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.model_identity import model_identity
from rwkv_train.inference.engine.sequence_state import state_tensors
from rwkv_train.inference.engine.state_files import SavedSequence, load_sequence, save_sequence
from tests.models.tiny import VERSIONS, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_read_is_what_was_written(tmp_path: Path, version: str):
    engine = Engine(tiny_model(version))
    logits, states = engine.prefill([PROMPT, PROMPT[:3]])
    path = tmp_path / "a.state"
    save_sequence(path, SavedSequence(states[1], logits[1], {"who": "Grüße"}), engine)
    found = load_sequence(path, engine)
    assert found.about == {"who": "Grüße"} and torch.equal(found.logits, logits[1])
    assert (found.state.position, found.state.last_tokens) == (3, (3, 1, 4))
    for name, value in state_tensors(states[1].alone()).items():
        assert torch.equal(state_tensors(found.state.block)[name], value), name
    assert [p.name for p in tmp_path.iterdir()] == ["a.state"]


def test_a_model_is_known_in_every_number_format_and_others_are_not():
    model = tiny_model("7").bfloat16()
    assert model_identity(model) == model_identity(tiny_model("7").bfloat16().float())
    with_states = tiny_model("7", seed=1, options={"train_states": True}).bfloat16()
    with_states.load_state_dict(model.state_dict(), strict=False)
    assert model_identity(with_states) == model_identity(model)
    changed = tiny_model("7").bfloat16()
    changed.blocks[1].ffn.x_k.data[0, 0, 5] += 1
    assert model_identity(changed) != model_identity(model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a sequence of an RWKV-6."""
    engine = Engine(tiny_model("6"))
    path = tmp_path_factory.mktemp("states") / "six.state"
    save_sequence(path, SavedSequence(engine.prefill([PROMPT])[1][0]), engine)
    return path


def test_the_state_of_another_model_is_refused(saved: Path):
    with pytest.raises(CheckpointError, match=r"six\.state is the state of another model \(RWKV-6"):
        load_sequence(saved, Engine(tiny_model("7")))
    with pytest.raises(CheckpointError, match="other weights"):
        load_sequence(saved, Engine(tiny_model("6", seed=1)))


def test_other_files_are_refused(saved: Path, tmp_path: Path):
    engine = Engine(tiny_model("6"))
    cut = tmp_path / "cut.state"
    cut.write_bytes(saved.read_bytes()[:-40])
    weights = tmp_path / "weights.pth"
    torch.save(engine.model.state_dict(), weights)
    changed = tmp_path / "changed.state"
    content = bytearray(saved.read_bytes())
    content[-3] ^= 1
    changed.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"changed\.state is damaged: its content"):
        load_sequence(changed, engine)
    for path, words in ((cut, "damaged"), (weights, "no state"), (tmp_path / "x", "not exist")):
        with pytest.raises(CheckpointError, match=words):
            load_sequence(path, engine)


def test_a_file_that_cannot_be_written_leaves_what_was_there(saved: Path, tmp_path: Path):
    engine = Engine(tiny_model("6"))
    state = engine.prefill([PROMPT])[1][0]
    with pytest.raises(CheckpointError, match=r"cannot write .*gone"):
        save_sequence(tmp_path / "gone" / "a.state", SavedSequence(state), engine)
