"""What machines hold for their cards: bytes worked out by hand."""

from __future__ import annotations

import pytest

from rwkv_train.planning.host_memory import host_memory
from tests.planning.imagined import imagined

# As in test_file_sizes.py: RWKV-5, one layer of 64 channels.
LINE = "--rwkv_version 5 --n_layer 1 --n_embd 64 --vocab_size 100 --ctx_len 64 --micro_bsz 2 "
PARAMETERS = 2 * 6400 + 6 * 4096 + 2 * 14336 + 64 * (10 + 6 + 2)
STATE = 12 * PARAMETERS


@pytest.mark.parametrize(
    ("words", "saves", "offloaded"),
    [
        ("", STATE, 0),
        # Every process copies its part: two machines hold half each.
        ("--devices 4 --num_nodes 2", STATE // 2, 0),
        ("--devices 4 --num_nodes 2 --state_format file", STATE, 0),
        ("--strategy deepspeed_stage_2_offload", STATE, 16 * PARAMETERS),
        (
            "--devices 4 --num_nodes 2 --strategy deepspeed_stage_3_offload",
            *(STATE // 2, 8 * PARAMETERS),
        ),
        # One head of 64 x 64 learns, in one file.
        ("--train_type states --devices 4 --num_nodes 2", 12 * 4096, 0),
        # All of it is the processes' own, and in their plan.
        ("--accelerator cpu", 0, 0),
    ],
)
def test_a_machine_holds_the_copies_of_a_save_and_what_is_offloaded(words, saves, offloaded):
    assert tuple(host_memory(imagined(LINE + words))) == (saves, offloaded)
