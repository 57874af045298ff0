"""States between the windows of a row: kept by sample number, whatever the micro batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train.data.samples.batch import Batch
from rwkv_train.errors import CheckpointError
from rwkv_train.models.state import LayerState, ModelState
from rwkv_train.training.carried_state import CarriedStates

# rows of 12 tokens, read in windows of 4
CTX_LEN, WINDOW = 12, 4
ALONE = SimpleNamespace(world_size=1)


def batch(*numbers: int, position: int = 0) -> Batch:
    tokens = torch.zeros(len(numbers), WINDOW, dtype=torch.int64)
    return Batch(tokens, tokens, None, None, ("",) * len(numbers), numbers, position)


def state_of(*values: float, parts: int = 1) -> ModelState:
    """Two layers of width 2 whose tensors hold the value of their row; parts: of the operator."""
    rows = torch.tensor(values)[:, None].expand(-1, 2)
    wkv = torch.tensor(values)[:, None, None].expand(-1, 2, 2)
    layer = LayerState(rows, wkv if parts == 1 else (wkv, wkv + 0.25, wkv + 0.5), rows + 0.75)
    return (layer, layer)


def values_of(state: ModelState | None) -> list[float]:
    assert state is not None
    for layer in state:
        first = layer.wkv[0] if isinstance(layer.wkv, tuple) else layer.wkv
        assert torch.equal(first[:, 0], layer.att_shift)
        assert torch.equal(layer.ffn_shift, layer.att_shift + 0.75)
        if isinstance(layer.wkv, tuple):
            assert torch.equal(layer.wkv[2], layer.wkv[0] + 0.5)
    return state[0].att_shift[:, 0].tolist()


def after_first_window(*micro_batches: tuple[int, ...], parts: int = 1) -> CarriedStates:
    carried = CarriedStates(CTX_LEN, WINDOW)
    carried.begin_step()
    for numbers in micro_batches:
        assert carried.load(batch(*numbers)) is None
        carried.store(batch(*numbers), state_of(*numbers, parts=parts))
    return carried


def test_a_row_begins_without_a_state_and_goes_on_with_that_of_its_window_before():
    carried = after_first_window((1, 2), (3, 4))
    assert values_of(carried.load(batch(1, 2, position=4))) == [1, 2]
    assert values_of(carried.load(batch(3, 4, position=4))) == [3, 4]


def test_a_stored_state_is_a_copy_without_a_gradient():
    carried, value = CarriedStates(CTX_LEN, WINDOW), torch.ones(1, 2, requires_grad=True)
    moving = value * 2
    carried.store(batch(1), (LayerState(moving, moving[..., None], moving),))
    with torch.no_grad():
        moving.zero_()
    (layer,) = carried.load(batch(1, position=4))
    assert not layer.att_shift.requires_grad and layer.att_shift.tolist() == [[2, 2]]


def test_nothing_is_kept_at_the_end_of_rows():
    carried = after_first_window((1, 2))
    for position in (4, 8):
        carried.load(batch(1, 2, position=position))
        carried.store(batch(1, 2, position=position), state_of(1, 2))
    assert carried.capture(ALONE) == {"position": 0, "states": {}}


def test_a_window_after_another_place_is_our_own_mistake():
    carried = after_first_window((1,))
    with pytest.raises(AssertionError, match="token 8 cannot follow the state of token 4"):
        carried.load(batch(1, position=8))


def test_a_bad_step_leaves_no_trace_in_the_states():
    carried = after_first_window((1, 2))
    carried.skip_step()
    # at the start of rows nothing was known: zeros, and the next window follows all the same
    assert carried.load(batch(1, 2, position=4))[0].att_shift.abs().sum() == 0
    carried.store(batch(1, 2, position=4), state_of(5, 6))
    carried.begin_step()
    assert values_of(carried.load(batch(1, 2, position=8))) == [5, 6]
    # within rows it is the state that the bad window began with
    rows = CarriedStates(4 * WINDOW, WINDOW)
    rows.store(batch(1), state_of(7))
    rows.begin_step()
    rows.load(batch(1, position=4))
    rows.store(batch(1, position=4), state_of(torch.nan))
    rows.skip_step()
    assert values_of(rows.load(batch(1, position=8))) == [7]


def test_a_bad_first_window_leaves_the_empty_state_of_rwkv4():
    carried = CarriedStates(CTX_LEN, WINDOW)
    carried.store(batch(1, 2), state_of(1.5, torch.nan, parts=3))
    carried.skip_step()
    for layer in carried.load(batch(1, 2, position=4)):
        aa, bb, pp = layer.wkv
        assert aa.abs().sum() == bb.abs().sum() == layer.ffn_shift.abs().sum() == 0
        # an exponent of 0 would outweigh every small one
        assert (pp == -1e38).all()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "split", [[(1, 2, 3, 4)], [(1,), (2,), (3,), (4,)], [(3, 4), (1, 2)], [(1, 2, 3), (4,)]]
)
def test_a_resumed_run_may_have_other_micro_batches(split, parts):
    saved = after_first_window((1, 2), (3, 4), parts=parts).capture(ALONE)
    assert saved["position"] == 4 and sorted(saved["states"]) == [1, 2, 3, 4]
    resumed = CarriedStates(CTX_LEN, WINDOW)
    resumed.restore(saved, range(1, 5), 4)
    # a save before the first step hands on what was restored
    assert resumed.capture(ALONE) == {**saved, "states": dict(saved["states"])}
    for numbers in split:
        assert values_of(resumed.load(batch(*numbers, position=4))) == list(numbers)


def test_saved_rows_do_not_share_memory():
    saved = after_first_window((1, 2)).capture(ALONE)
    # torch.save would write a whole batch for each of them
    tensors = [t for layers in saved["states"].values() for layer in layers for t in layer]
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in tensors)


@pytest.mark.parametrize(
    ("samples", "position", "lacks"), [(range(1, 4), 4, "sample 3"), (range(1, 3), 8, "token 8")]
)
def test_a_state_of_another_place_is_refused(samples, position, lacks):
    saved = after_first_window((1, 2)).capture(ALONE)
    with pytest.raises(CheckpointError, match=f"lacks the carried state of {lacks}"):
        CarriedStates(CTX_LEN, WINDOW).restore(saved, samples, position)


def test_ranks_that_share_rows_keep_one_copy():
    def kept_by(rank: int) -> list[int]:
        carried = CarriedStates(CTX_LEN, WINDOW, copies=2)
        # Half of a window's tokens, which is as long all the same.
        half = batch(1, 2)._replace(tokens=torch.zeros(2, WINDOW // 2, dtype=torch.int64))
        assert carried.continues_after(half) and carried.load(half) is None
        carried.store(half, state_of(1, 2))
        assert values_of(carried.load(half._replace(position=WINDOW))) == [1, 2]
        carried.store(half, state_of(1, 2))
        strategy = SimpleNamespace(world_size=1, global_rank=rank)
        return sorted(carried.capture(strategy)["states"])

    assert [kept_by(rank) for rank in range(4)] == [[1, 2], [], [1, 2], []]
