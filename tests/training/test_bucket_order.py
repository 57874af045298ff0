"""DDP with the mean taken bucket by bucket gives torch's own gradients."""

from __future__ import annotations

from tests.training.runs import start


def test_gradients_of_three_ranks_are_the_bits_of_torchs_own_mean():
    # A third is no number of binary digits: dividing by 3 would round otherwise than times 1 / 3.
    done = start("tests.training.bucket_worker", ranks=3)
    assert done.returncode == 0, done.stdout + done.stderr
