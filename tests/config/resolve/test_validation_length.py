"""What a validation reads, and what it may not change when a run resumes."""

from __future__ import annotations

import pytest

from rwkv_train.config.load import dump_config, saved_values
from tests.config.resolving import MINIPILE, but, config_of, fault, found, resolved, values

SPLIT = but(MINIPILE, token_count=1000000, held_out_tokens=5120, best_prime=1949)


def test_validation_samples_are_as_long_as_training_samples_unless_told():
    assert values("--val_data_file v", "val_ctx_len") == 512
    assert values("--val_data_file v --val_ctx_len 8192", "val_ctx_len") == 8192
    assert values("", "val_ctx_len") is None


def test_held_out_tokens_are_said_and_not_part_of_the_budget():
    config, lines = resolved("--val_split 10", SPLIT)
    assert (config.train.exit_tokens, config.data.magic_prime) == (1000000, 1949)
    assert any("5120 tokens are held out" in line for line in lines)


def test_a_copy_head_cannot_be_validated_beyond_its_context():
    line = "--rwkv_version 4 --head_qk 64 --val_data_file v --val_ctx_len "
    assert values(line + "512", "val_ctx_len") == 512
    assert "head_qk" in fault(line + "513")


def state_of(line):
    config, _ = resolved(line, SPLIT)
    return found("state", 3, "out/rwkv-3.state", SPLIT, config=saved_values(dump_config(config)))


@pytest.mark.parametrize(
    ("before", "now", "word"),
    [
        ("--val_split 10", "--val_split 11", "--val_split 11"),
        ("--val_split 10", "", "--val_split None"),
        ("", "--val_split 10", "has trained on all of its data"),
        ("--val_split 10", "--val_split 10 --val_ctx_len 1024", "--val_ctx_len 1024"),
    ],
)
def test_another_split_than_that_of_the_run_is_refused(before, now, word):
    assert word in fault(now, state_of(before))


def test_the_same_split_goes_on_however_it_was_written():
    state = state_of("--val_split 10")
    assert values("--val_split 10.0 --val_ctx_len 512", "val_split", discovered=state) == 10
    assert values("--val_data_file v", "val_split", discovered=state_of("")) is None
    older = but(state, config={"ctx_len": 1024})
    assert values("--val_data_file v", "val_ctx_len", discovered=older) == 512


def test_the_values_of_a_saved_configuration_are_read_back_by_name():
    config = config_of("--val_split 0.25 --n_layer 3")
    read = saved_values(dump_config(config))
    assert (read["val_split"], read["n_layer"], read["wandb"]) == (0.25, 3, None)
