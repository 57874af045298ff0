"""The fuzzing program's checks hold on sound and on a few damaged contents."""

from __future__ import annotations

import random

import pytest

from tests.data.fuzz_files import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_accepts_its_seeds_and_survives_damage(name, tmp_path):
    contents = seeds(tmp_path)
    target, generator = TARGETS[name](tmp_path), random.Random(4)
    for seed in contents:
        target(seed)
        for _ in range(10):
            damaged = bytearray(seed)
            damaged[generator.randrange(len(seed))] = generator.randrange(256)
            target(bytes(damaged[: generator.choice([len(seed), generator.randrange(len(seed))])]))
