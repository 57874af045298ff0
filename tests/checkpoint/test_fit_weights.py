"""Fitting loaded weights to a model: what is reshaped, filled and refused, and in which words."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.checkpoint.weights import fit_weights
from rwkv_train.errors import CheckpointError


def model_of(layers, *, vocab=4, width=3):
    """Keys and shapes like a model's, all zero."""
    state = {"emb.weight": torch.zeros(vocab, width)}
    for layer in range(layers):
        state |= {
            f"blocks.{layer}.ln1.weight": torch.zeros(width),
            f"blocks.{layer}.att.time_mix_k": torch.zeros(1, 1, width),
            f"blocks.{layer}.att.v0": torch.zeros(1, 1, width),
            f"blocks.{layer}.att.key.weight": torch.zeros(width, width),
            f"blocks.{layer}.ffn.key.weight": torch.zeros(width, width),
        }
    return state | {"head.weight": torch.zeros(vocab, width)}


def filled(state):
    """The same keys, other values: those of a file."""
    return {key: value + 1 for key, value in state.items()}


def test_a_fitting_checkpoint_is_taken_in_model_order():
    model = model_of(2)
    file = dict(reversed(filled(model).items()))
    fitted, report = fit_weights(model, file, partial=False)
    assert list(fitted) == list(model)
    assert all(fitted[key] is file[key] for key in model)
    assert (report.filled, report.reshaped, str(report)) == ((), (), "")


def test_axes_of_size_one_are_reshaped():
    model = model_of(1)
    key = "blocks.0.att.time_mix_k"
    file = filled(model) | {key: torch.tensor([1.0, 2.0, 3.0])}
    fitted, report = fit_weights(model, file, partial=False)
    assert fitted[key].shape == (1, 1, 3) and fitted[key].flatten().tolist() == [1, 2, 3]
    assert report.reshaped == (key,)
    assert key in str(report)


def test_the_same_number_of_entries_is_not_enough():
    model = {"emb.weight": torch.zeros(4, 3)}
    for shape in ((3, 4), (12,), (2, 6)):
        with pytest.raises(CheckpointError, match=r"emb\.weight \[.*\(expected \[4, 3\]\)"):
            fit_weights(model, {"emb.weight": torch.zeros(shape)}, partial=True)


def test_optional_keys_may_be_missing_and_keep_the_models_value():
    model = model_of(2)
    file = filled(model)
    del file["blocks.0.att.v0"]
    with pytest.raises(CheckpointError, match=r"missing: blocks\.0\.att\.v0"):
        fit_weights(model, file, partial=False)
    fitted, report = fit_weights(model, file, partial=False, optional=("blocks.0.att.v0",))
    assert fitted["blocks.0.att.v0"] is model["blocks.0.att.v0"]
    assert report.filled == ("blocks.0.att.v0",)
    del file["blocks.1.att.v0"]
    _, report = fit_weights(model, file, partial=False, optional=("blocks.*.att.v0",))
    assert report.filled == ("blocks.0.att.v0", "blocks.1.att.v0")


def test_partial_loading_fills_single_tensors_and_lists_them():
    model = model_of(2)
    file = filled(model)
    del file["blocks.1.att.time_mix_k"]
    with pytest.raises(CheckpointError, match="--load_partial 1 fills"):
        fit_weights(model, file, partial=False)
    fitted, report = fit_weights(model, file, partial=True)
    assert fitted["blocks.1.att.time_mix_k"] is model["blocks.1.att.time_mix_k"]
    assert report.filled == ("blocks.1.att.time_mix_k",)
    assert "blocks.1.att.time_mix_k kept the initial value" in str(report)


@pytest.mark.parametrize("lost", ["emb.", "head.", "blocks.1.att.", "blocks.0.ffn.", "blocks.1."])
def test_partial_loading_refuses_to_fill_whole_layers(lost):
    model = model_of(2)
    file = {key: value for key, value in filled(model).items() if not key.startswith(lost)}
    with pytest.raises(CheckpointError, match=f"whole layers missing: {lost.rstrip('.')}"):
        fit_weights(model, file, partial=True)


def test_a_file_of_states_alone_is_no_base_model():
    model = model_of(2) | {f"blocks.{i}.att.time_state": torch.zeros(1, 3, 3) for i in range(2)}
    states = {key: value for key, value in filled(model).items() if "time_state" in key}
    with pytest.raises(CheckpointError, match="only trained states: load its base model"):
        fit_weights(model, states, partial=True, optional=("blocks.*.att.time_state",))


def test_states_for_a_model_without_them_are_explained():
    file = filled(model_of(1)) | {"blocks.0.att.time_state": torch.zeros(1, 3, 3)}
    with pytest.raises(CheckpointError, match="the file holds trained states"):
        fit_weights(model_of(1), file, partial=False)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("in_file", "given"), [(24, 12), (12, 24)])
def test_another_number_of_layers_is_named(partial, in_file, given):
    with pytest.raises(CheckpointError) as caught:
        fit_weights(model_of(given), filled(model_of(in_file)), partial=partial)
    message = str(caught.value)
    assert f"the file has {in_file} layers, --n_layer {given} was given" in message
    # 60 keys are in question; the message shows ten of them.
    assert "more (60 in all)" in message or "whole layers missing" in message
    assert len(message) < 1500


def test_another_vocabulary_or_width_is_named():
    with pytest.raises(CheckpointError, match="--vocab_size 9, the model was built with 4"):
        fit_weights(model_of(1), filled(model_of(1, vocab=9)), partial=False)
    with pytest.raises(CheckpointError, match="--n_embd 6, the model was built with 3"):
        fit_weights(model_of(1), filled(model_of(1, width=6)), partial=False)


def test_all_kinds_of_misfit_are_in_one_message():
    model = model_of(1)
    file = filled(model) | {"stranger": torch.zeros(1), "head.weight": torch.zeros(4, 5)}
    del file["blocks.0.ln1.weight"]
    with pytest.raises(CheckpointError) as caught:
        fit_weights(model, file, partial=False)
    assert str(caught.value).splitlines() == [
        "the checkpoint does not fit the model:",
        "  missing: blocks.0.ln1.weight",
        "  unexpected: stranger",
        "  of another shape: head.weight [4, 5] (expected [4, 3])",
        "  no flag mends that: give the file that this one was made from",
    ]
