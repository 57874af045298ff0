"""A run's memory is added up from what is known of model, operators and strategy."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import MOST_SLICE_BYTES, SLICE_BYTES
from rwkv_train.ops.native.custom_ops import CHECKPOINT_INTERVAL
from rwkv_train.ops.wkv4.native import WKV4_CHECKPOINT_INTERVAL
from rwkv_train.planning import head_memory, kept_activations
from rwkv_train.planning.held_parameters import held_parameters
from rwkv_train.planning.kept_activations import block_bytes
from rwkv_train.planning.memory import MemoryPlan, memory_plan
from rwkv_train.planning.pass_sizes import pass_sizes
from rwkv_train.planning.smaller_settings import smaller_runs, with_fields
from tests.config.resolving import EIGHT_GPUS, MINIPILE, but, resolved
from tests.models.test_layer_traffic import KEPT

SMALL = "--rwkv_version 7 --n_layer 2 --n_embd 64 --vocab_size 512 --accelerator cpu"
NO_SAVES = "--save_every_minutes 0 --epoch_save 0"


def config_of(line, discovered=MINIPILE):
    return resolved(line, but(discovered, vocab_size=64))[0]


def changed(config, **fields):
    return with_fields(config, fields)


def parameters_of(config):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


@pytest.mark.parametrize(
    ("line", "weights", "masters", "gradients", "moments"),
    [
        ("", 4, 0, 4, 8),
        ("--precision bf16", 4, 0, 4, 8),
        ("--precision bf16 --autocast 0", 2, 4, 2, 8),
        ("--precision bf16 --autocast 0 --accumulate_grad_batches 2", 2, 4, 4, 8),
        ("--devices 2 --strategy deepspeed_stage_1", 4, 2, 4, 4),
        ("--devices 2 --strategy deepspeed_stage_2", 4, 2, 2, 4),
        ("--devices 2 --strategy deepspeed_stage_3", 2, 2, 2, 4),
        ("--devices 2 --strategy deepspeed_stage_1 --precision bf16", 2, 2, 4, 4),
        ("--devices 2 --strategy deepspeed_stage_3 --precision bf16", 1, 2, 2, 4),
        ("--devices 2 --num_nodes 2 --strategy deepspeed_stage_3", 1, 1, 1, 2),
    ],
)
def test_what_is_held_follows_strategy_and_precision(line, weights, masters, gradients, moments):
    config = config_of(f"{SMALL} {line}")
    count = parameters_of(config)
    held = held_parameters(config)
    found = (held.weights, held.masters, held.all_gradients, held.moments)
    assert found == tuple(count * size for size in (weights, masters, gradients, moments))


@pytest.mark.parametrize(
    ("line", "apart"), [("", 0), ("--accumulate_grad_batches 2", 4), ("--precision bf16", 0)]
)
def test_gradients_of_ddp_lie_in_its_buckets(line, apart):
    config = config_of(f"{SMALL} --devices 2 --strategy ddp {line}")
    count, held = parameters_of(config), held_parameters(config)
    # Micro batches before the last one of a step add up outside.
    assert (held.gathered, held.all_gradients) == (4 * count, apart * count)
    assert held.step_gradients == 0


def test_autocast_widens_the_gradients_of_a_block_together():
    # Wide enough for a block's gradients to be more than all that its few tokens take; on a GPU,
    # where the copies of a save are not the most that a run holds.
    line = SMALL.replace("n_embd 64", "n_embd 1024").replace("cpu", "gpu")
    line = f"{line} --precision bf16 --autocast 1 --ctx_len 16 --micro_bsz 1 --strategy ddp"
    config = changed(config_of(line, EIGHT_GPUS), strategy="single_device")
    held = held_parameters(config)
    # six matrices of the time mix and channel mix, and four pairs of low rank
    matrices = 4 * 1024**2 + 2 * 1024 * 4096
    assert matrices < held.narrow_gradients / 2 < 1.2 * matrices
    # At the end of the first block all is there: the second block's and its own, in both dtypes.
    everything = held.head_gradient + 2 * held.block_gradients + held.narrow_gradients
    assert memory_plan(config).gradients == everything
    assert memory_plan(config).weights == held.weights


def test_muon_keeps_one_momentum_of_a_matrix():
    config = config_of(f"{SMALL} --optimizer muon")
    # per layer: four matrices of the time mix, two of the channel mix of 4 x 64
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert held_parameters(config).moments == 8 * parameters_of(config) - 4 * matrices


def test_adapters_hold_gradients_and_moments_of_themselves_alone():
    config = changed(config_of(f"{SMALL} {NO_SAVES}"), train_type="lora")
    # r = 8 rows and columns next to the same six matrices
    learnt = 2 * 8 * (4 * (64 + 64) + 2 * (64 + 256))
    held = held_parameters(config)
    assert held.weights == 4 * (parameters_of(config) + learnt)
    assert (held.all_gradients, held.moments) == (4 * learnt, 8 * learnt)


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
def test_a_block_keeps_what_the_traffic_of_a_layer_shows(version):
    # In units of a bf16 sequence, of a layer that is not the first, as measured there.
    line = f"--rwkv_version {version} --n_layer 3 --n_embd 768 --vocab_size 64 --accelerator cpu"
    config = config_of(f"{line} --precision bf16 --devices 2 --strategy deepspeed_stage_2")
    kept = block_bytes(config, is_first=False).kept / (2 * 768)
    assert kept == pytest.approx(KEPT[version], rel=0.01)


def test_constants_are_those_of_the_operators():
    assert head_memory._LOGITS == SLICE_BYTES
    assert head_memory._MOST_LOGITS["cpu"] == MOST_SLICE_BYTES["cpu"]
    assert head_memory._MOST_LOGITS["gpu"] == MOST_SLICE_BYTES["cuda"]
    assert kept_activations._STATE_EVERY == CHECKPOINT_INTERVAL
    assert kept_activations._STATE_EVERY_OF_RWKV4 == WKV4_CHECKPOINT_INTERVAL


def test_states_between_chunks_and_windows_are_counted():
    line = f"{SMALL} --ctx_len 256 --micro_bsz 3 --chunk_len 64"
    # two shifts of 64 and a state of 64 x 64 in fp32, in each of two layers
    state = 3 * 2 * 4 * (2 * 64 + 64 * 64)
    chunks = pass_sizes(config_of(line))
    assert (chunks.states, chunks.tokens, chunks.chunks) == (4 * state, 3 * 64, 4)
    windows = pass_sizes(config_of(f"{line} --bptt_chunks 1 --accumulate_grad_batches 2"))
    assert (windows.states, windows.micro_batches) == (4 * state, 2)


def test_a_process_that_shares_its_samples_holds_its_part_of_them():
    line = f"{SMALL} --ctx_len 256 --micro_bsz 3 --devices 4 --context_parallel 4"
    state = 3 * 2 * 4 * (2 * 64 + 64 * 64)
    shared = pass_sizes(config_of(line))
    # The state before its own piece, and three pieces of two states' size behind it.
    assert (shared.tokens, shared.chunks, shared.states) == (3 * 64, 1, 7 * state)
    chunks = pass_sizes(config_of(f"{line} --chunk_len 32"))
    assert (chunks.tokens, chunks.chunks, chunks.states) == (3 * 32, 2, 2 * (1 + 7) * state)
    alone = config_of(f"{SMALL} --ctx_len 8192 --micro_bsz 1 --devices 4")
    spread = config_of(f"{SMALL} --ctx_len 8192 --micro_bsz 4 --devices 4 --context_parallel 4")
    # As many tokens each, at about the same price.
    assert memory_plan(spread).activations == memory_plan(alone).activations


def test_every_way_to_save_memory_does():
    config = config_of(f"{SMALL} --ctx_len 512 --micro_bsz 8 --vocab_size 65536 --devices 2")
    whole = memory_plan(config)
    assert whole.total == sum(dataclasses.astuple(whole))
    for fields in (
        {"grad_cp": True},
        {"chunk_len": 128},
        {"head_chunk": 64},
        {"micro_bsz": 2, "accumulate_grad_batches": 4},
        {"precision": "bf16", "autocast": True},
        {"save_in_background": False},
        {"train_type": "lora"},
        {"train_type": "states"},
        {"strategy": "deepspeed_stage_2"},
    ):
        assert memory_plan(changed(config, **fields)).total < whole.total, fields


def test_saves_beside_training_take_copies_of_weights_and_moments():
    with_copies = memory_plan(config_of(f"{SMALL} --micro_bsz 64"))
    without = memory_plan(config_of(f"{SMALL} --micro_bsz 64 {NO_SAVES}"))
    copies = 12 * parameters_of(config_of(SMALL))
    assert with_copies.buffers - without.buffers == copies
    on_gpu = config_of(SMALL.replace("cpu", "gpu"), EIGHT_GPUS)
    assert memory_plan(changed(on_gpu, strategy="single_device")).buffers == 0


def test_the_suggested_changes_fit_and_are_the_smallest_sets():
    config = config_of(f"{SMALL} --ctx_len 512 --micro_bsz 8")
    most = 0.4 * memory_plan(config).allocated

    def fits(other, plan):
        return plan.allocated <= most

    runs = smaller_runs(config, fits)
    assert 0 < len(runs) <= 3
    names = [set(run.flags.split()[::2]) for run in runs]
    for run, own in zip(runs, names):
        assert run.plan.allocated <= most
        assert not any(other < own for other in names)
        again = config_of(f"{SMALL} --ctx_len 512 --micro_bsz 8 {run.flags}")
        assert memory_plan(again) == run.plan


def test_smaller_batches_keep_the_samples_of_a_step():
    config = config_of(f"{SMALL} --micro_bsz 6 --accumulate_grad_batches 2")
    runs = smaller_runs(config, lambda other, plan: other.train.micro_bsz < 6, count=1)
    assert runs[0].flags == "--micro_bsz 3 --accumulate_grad_batches 4"


def test_training_less_of_a_model_is_suggested_where_there_is_one():
    config = config_of(SMALL)
    for start, found in ((None, False), ("weights.pth", True)):
        runs = smaller_runs(
            changed(config, load_model=start), lambda other, plan: other.train.train_type == "lora"
        )
        assert any("--train_type lora" in run.flags for run in runs) == found


def test_components_have_the_names_that_reports_read():
    assert list(MemoryPlan().components()) == [
        *("weights", "master_weights", "gradients", "optimizer", "activations"),
        *("head", "states", "buffers", "slack", "batch"),
    ]
