"""1 process, then 2, then 1, the batch split otherwise too: the same samples, the same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import train
from rwkv_train.data.samples.dataset import TokenDataset
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation
from rwkv_train.training.module import TrainingModule
from tests.training import record_samples as order
from tests.training.runs import loss_steps, losses, start

# (processes, micro batch, accumulation, steps done at its end); always 4 samples a step
PARTS = [(1, 4, 1, 3), (2, 1, 2, 6), (1, 1, 4, 8), (1, 2, 2, 10)]


@pytest.mark.slow
def test_the_order_of_the_samples_and_the_losses_are_those_of_one_process(
    flags: Callable[..., list[str]], tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    step = TrainingModule.training_step

    def run(name: str, **changes: object) -> Path:
        words = flags(
            **{
                "exit_tokens": 10 * 128,
                "proj_dir": tmp_path / "parts",
                "weight_decay": 0.1,
                **changes,
            }
        )
        if changes.get("devices", 1) == 1:
            monkeypatch.setattr(TrainingModule, "training_step", step)
            order.write_down(tmp_path / name)
            assert train.main(words) == 0
            return tmp_path / name
        done = start("tests.training.record_samples", str(tmp_path / name), *words, ranks=2)
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    whole = order.read(run("whole", proj_dir=tmp_path / "one"), 1, 1)
    parts = []
    for processes, micro_bsz, accumulate, end in PARTS:
        file = run(
            f"part{end}",
            devices=processes,
            micro_bsz=micro_bsz,
            accumulate_grad_batches=accumulate,
            max_steps=end,
            strategy="ddp" if processes > 1 else "auto",
        )
        parts += order.read(file, processes, accumulate)
    source = open_source(str(corpus), "binidx")
    dataset = TokenDataset(source, 32, Permutation(magic_prime(source.tokens, 32)), vocab_size=257)
    assert [sorted(step) for step in whole] == [
        [4 * step + i for i in (1, 2, 3, 4)] for step in range(10)
    ]
    expected = [
        {number: order.checksum(dataset[number].tokens) for number in step} for step in whole
    ]
    assert whole == expected
    assert parts == expected
    assert loss_steps(tmp_path / "parts") == list(range(10))
    # fp32: sums of the same numbers in another order
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "one"), rel=2e-6)
