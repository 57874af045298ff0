"""Runs train.py and writes down what every process is trained on.

    python -m tests.training.record_samples FILE FLAGS...

Per micro batch a line in FILE.RANK: the sample numbers, then a checksum of each sample's tokens.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

from torch import Tensor

import train
from rwkv_train.data.samples.batch import Batch
from rwkv_train.training.module import TrainingModule


def checksum(tokens: Tensor) -> int:
    """CRC-32 of the ids."""
    return zlib.crc32(tokens.numpy().tobytes())


def write_down(file: Path) -> None:
    """From now on."""
    step = TrainingModule.training_step

    def noted(module: TrainingModule, batch: Batch, index: int) -> Tensor:
        sums = [checksum(row) for row in batch.tokens]
        with Path(f"{file}.{module.global_rank}").open("a") as lines:
            lines.write(json.dumps([batch.numbers, sums]) + "\n")
        return step(module, batch, index)

    TrainingModule.training_step = noted


def read(file: Path, ranks: int, micro_batches: int) -> list[dict[int, int]]:
    """Per optimizer step, in order: sample number -> checksum, of all ranks together."""
    steps: list[dict[int, int]] = []
    for rank in range(ranks):
        lines = [json.loads(line) for line in Path(f"{file}.{rank}").read_text().splitlines()]
        for index, (numbers, sums) in enumerate(lines):
            if index // micro_batches == len(steps):
                steps.append({})
            steps[index // micro_batches].update(zip(numbers, sums))
    return steps


if __name__ == "__main__":
    write_down(Path(sys.argv[1]))
    sys.exit(train.main(sys.argv[2:]))
