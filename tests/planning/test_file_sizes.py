"""Files of a run: bytes worked out by hand; tests/training/start compares with files on disk."""

from __future__ import annotations

import pytest

from rwkv_train.planning.file_sizes import copy_sizes, data_size, run_files
from tests.planning.imagined import imagined

# RWKV-5, one layer of 64 channels, F = 224, V = 100: 2 x 6400 outside, 5 x 4096 and 2 x 14336 and
# 4096 in matrices, 64 x (2 x 5 norms, 6 mixes, decay, bonus) in vectors.
LINE = "--rwkv_version 5 --n_layer 1 --n_embd 64 --vocab_size 100 --ctx_len 64 --micro_bsz 2 "
PARAMETERS = 2 * 6400 + 6 * 4096 + 2 * 14336 + 64 * (10 + 6 + 2)


def test_weights_are_in_the_training_precision_and_states_have_masters_and_two_moments():
    files = run_files(imagined(LINE))
    assert (files.weights, files.state) == (2 * PARAMETERS, 12 * PARAMETERS)
    assert run_files(imagined(LINE + "--save_fp32 1")).weights == 4 * PARAMETERS


def test_muon_keeps_one_momentum_of_a_matrix_and_adam8bit_a_byte_of_each():
    matrices = 6 * 4096 + 2 * 14336
    muon = run_files(imagined(LINE + "--optimizer muon"))
    assert muon.state == 12 * PARAMETERS - 4 * matrices
    small = run_files(imagined(LINE + "--optimizer adam8bit"))
    assert small.state == pytest.approx((4 + 2) * PARAMETERS, rel=0.01)


def test_a_run_of_states_keeps_the_states_alone():
    files = run_files(imagined(LINE + "--train_type states"))
    # One head of 64 x 64; the merged model lies beside the states.
    assert (files.weights, files.state) == (2 * (PARAMETERS + 2 * 4096), 12 * 4096)


@pytest.mark.parametrize(("kind", "factors"), [("lora", 1), ("pissa", 2)])
def test_a_run_of_adapters_keeps_them_and_writes_the_merged_model(kind: str, factors: int):
    files = run_files(imagined(LINE + f"--train_type lora --lora_r 4 --lora_init {kind}"))
    pairs = 4 * (6 * (64 + 64) + 2 * (64 + 224))
    assert files.weights == 2 * PARAMETERS + 4 * pairs
    # Values in fp32, those at the start too, and two moments of what learns.
    assert files.state == 4 * pairs * factors + 8 * pairs


def test_files_are_counted_by_mini_epochs_and_retention():
    # 10 mini-epochs of 5 steps of 128 tokens; every third is kept, from the first on; the last one
    # is the run's end.
    line = LINE + "--epoch_steps 5 --epoch_save 3 --exit_tokens 6400 "
    files = run_files(imagined(line))
    # init; 0, 3, 6; final
    assert (files.weight_files, files.states) == (5, 3)
    assert files.most == 5 * files.weights + 3 * files.state
    assert run_files(imagined(line + "--keep_last_weights 1 --keep_last 4")).weight_files == 3
    assert run_files(imagined(line + "--keep_last 4 --keep_every 25")).states == 4 + 1 + 2
    assert run_files(imagined(line + "--epoch_save 0")).weight_files == 2
    assert run_files(imagined(line + "--train_type states")).weight_files == 4
    assert run_files(imagined(LINE)).most is None


def test_places_of_copies_keep_their_own_numbers_and_a_partner_gets_states_alone():
    # 50 steps in all.
    config = imagined(
        LINE + "--epoch_steps 5 --exit_tokens 6400 --keep_last 7 "
        "--state_copies /a:keep_last=3:keep_every=10,partner:/dev/shm/b:keep_last=1"
    )
    files = run_files(config)
    there, partner = copy_sizes(config)
    # 3, the final one, and those of steps 10 to 50; rwkv-final.pth.
    assert (there.states, there.bytes) == (9, 9 * files.state + files.weights)
    assert (partner.states, partner.bytes) == (2, 2 * files.state)
    assert copy_sizes(imagined(LINE)) == ()


def test_ids_of_the_world_vocabulary_take_two_bytes_and_larger_ones_four():
    assert data_size(1e9, 1e6, 65536) == (2 * 10**9, 42 + 20 * 10**6)
    assert data_size(1e9, 1e6, 65537).bin == 4 * 10**9
