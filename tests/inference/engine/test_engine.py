"""The engine reads and writes many sequences as if each were alone."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.inference.engine.engine import Engine, ReadPiece
from rwkv_train.inference.engine.sequence_state import SequenceState, stack_states, state_tensors
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model


def prompts_of(*lengths: int) -> list[list[int]]:
    return [random_tokens(1, n, seed=n)[0].tolist() for n in lengths]


def assert_same_state(found: SequenceState, expected: SequenceState) -> None:
    assert (found.position, found.last_tokens) == (expected.position, expected.last_tokens)
    tensors = state_tensors(expected.alone())
    for name, value in state_tensors(found.alone()).items():
        assert_close(name, value, tensors[name], 1e-10)


@pytest.fixture(scope="module", params=VERSIONS)
def engine(request: pytest.FixtureRequest) -> Engine:
    """A model of each version, with trained initial states where nothing else is said."""
    return Engine(tiny_model(request.param, options={"train_states": True}).double())


@pytest.mark.parametrize("piece", [1, 5, 16])
def test_a_prompt_read_in_pieces_is_a_prompt_read_at_once(engine: Engine, piece: int):
    (tokens,) = prompts_of(37)
    expected, _ = engine.model(torch.tensor([tokens]))
    _, (whole,) = engine.prefill([tokens])
    logits, (state,) = Engine(engine.model, piece_tokens=piece).prefill([tokens])
    assert_close("logits", logits[0], expected[0, -1], 1e-10)
    assert_same_state(state, whole)
    assert state.position == 37 and state.last_tokens == tuple(tokens[-16:])


def test_prompts_of_different_lengths_are_read_as_if_each_were_alone(engine: Engine):
    prompts = prompts_of(9, 1, 30, 9, 17)
    logits, states = Engine(engine.model, piece_tokens=20).prefill(prompts)
    for prompt, found, state in zip(prompts, logits, states, strict=True):
        expected, (alone,) = engine.prefill([prompt])
        assert_close("logits", found, expected[0], 1e-10)
        assert_same_state(state, alone)


def test_members_join_and_leave_between_tokens(engine: Engine):
    one, two, three = prompts_of(12, 7, 10)
    _, states = engine.prefill([one[:5], two[:3]])
    _, states = engine.step([one[5], two[3]], states)
    _, states = engine.step([three[0], two[4], one[6]], [engine.start(), *states[::-1]])
    late, middle, first = states
    logits, (late, first) = engine.step([three[1], one[7]], [late, first])
    _, (middle,) = engine.prefill([two[5:]], [middle])
    parallel = [engine.prefill([tokens]) for tokens in (three[:2], one[:8], two)]
    assert_close("logits", logits, torch.cat([p[0] for p in parallel[:2]]), 1e-10)
    for state, (_, (expected,)) in zip((late, first, middle), parallel, strict=True):
        assert_same_state(state, expected)


def test_a_state_that_was_read_on_from_is_unchanged(engine: Engine):
    (tokens,) = prompts_of(8)
    _, (kept,) = engine.prefill([tokens])
    before = kept.copied()
    first, _ = engine.step([3], [kept])
    engine.prefill([tokens, tokens[:2]], [kept, kept])
    assert_same_state(kept, before)
    assert torch.equal(engine.step([3], [kept])[0], first)


def test_the_same_members_are_handed_on_without_a_copy(engine: Engine):
    _, states = engine.prefill(prompts_of(4, 4, 4))
    assert stack_states(states) is states[0].block
    fewer = stack_states(states[1:])
    assert len(fewer[0].att_shift) == 2
    # One that is kept does not keep the others.
    assert len(states[1].copied().block[0].att_shift) == 1


def test_every_feature_is_shown_once_and_no_piece_is_larger_than_allowed(engine: Engine):
    prompts = prompts_of(50, 23, 3)
    seen = [torch.zeros(0, 64, dtype=torch.float64) for _ in prompts]

    def receive(piece: ReadPiece) -> None:
        assert piece.features.shape[0] * piece.features.shape[1] <= 16
        for row, member in enumerate(piece.members):
            assert len(seen[member]) == piece.start
            seen[member] = torch.cat([seen[member], piece.features[row]])

    Engine(engine.model, piece_tokens=16).read(prompts, None, receive)
    for tokens, found in zip(prompts, seen, strict=True):
        with torch.no_grad():
            expected, _ = engine.model.features(torch.tensor([tokens]))
        assert_close("features", found, expected[0], 1e-10)
