"""Mixtures in whole runs: the order, coverage inside the parts, resume, and refusals."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import train
from make_data import main as make_data
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.open_data import open_samples
from rwkv_train.training.start.resume_point import Fresh
from tests.training.runs import assert_same_weights, losses


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two byte-level pairs that share no letter."""
    folder = tmp_path_factory.mktemp("parts")
    for name, letters, count in (("one", "abcd", 60), ("two", "WXYZ", 25)):
        rows = [
            json.dumps({"text": "".join(letters[(i * k) % 4] for k in range(40))})
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
        assert not make_data(
            [
                str(folder / f"{name}.jsonl"),
                "1",
                "16",
                "--output",
                str(folder / name),
                "--tokenizer",
                "bytes",
            ]
        )
    return [folder / "one", folder / "two"]


def words(parts: list[Path], weights: str, *more: object) -> list[str]:
    first, second = weights.split()
    return [
        str(word)
        for word in (
            "--data_file",
            f"{parts[0]}:{first},{parts[1]}:{second}",
            "--ctx_len",
            16,
            "--rwkv_version",
            6,
            "--n_layer",
            1,
            "--n_embd",
            32,
            "--head_size",
            32,
            "--micro_bsz",
            4,
            "--accelerator",
            "cpu",
            "--devices",
            1,
            "--precision",
            "fp32",
            "--num_workers",
            0,
            "--plot",
            0,
            "--wkv_backend",
            "chunked",
            "--epoch_steps",
            5,
            "--epoch_save",
            1,
            *more,
        )
    ]


def opened(argv: list[str]):
    config = load_config(argv)
    discovered, opened = discover(config, Fresh())
    config, lines = resolve(config, discovered)
    return open_samples(config, opened), config, lines


def test_each_part_has_its_share_and_repeats_nothing_before_its_pass_ends(parts):
    samples, config, lines = opened(words(parts, "0.7 0.3"))
    data, small = samples.training, 25 * 41 // 16
    sizes = [len(part) for part in data.parts]
    assert sizes == [magic_prime(tokens, 16) for tokens in (60 * 41, 25 * 41)]
    assert sizes[1] < small
    seen = [Counter(), Counter()]
    for n in range(1, 201):
        sample = data[n]
        part = int((sample.tokens[sample.tokens > 0] < 98).any())
        assert sample.number == n
        seen[part][data.offset(n)] += 1
        assert abs(seen[1].total() - 0.3 * n) < 1
        for counter, size in zip(seen, sizes):
            passes, rest = divmod(counter.total(), size)
            assert set(counter.values()) <= {passes, passes + (rest > 0)}
    assert config.train.exit_tokens == 85 * 41
    assert any("as many as all parts hold" in line for line in lines)
    # 3485 tokens are 55 steps of 4 samples: 154 and 66 samples
    assert any(f"{66 / sizes[1]:.3g} passes" in note for note in samples.notes), samples.notes


def test_a_run_in_two_parts_ends_as_one_with_weights_that_change(parts, tmp_path):
    options = words(parts, "1..0 0..1", "--exit_tokens", 640)
    assert train.main([*options, "--proj_dir", str(tmp_path / "whole")]) == 0
    assert train.main([*options, "--proj_dir", str(tmp_path / "cut"), "--max_steps", "4"]) == 0
    assert train.main([*options, "--proj_dir", str(tmp_path / "cut")]) == 0
    assert_same_weights(tmp_path / "whole/rwkv-final.pth", tmp_path / "cut/rwkv-final.pth")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    saved = load_config(["--config", str(tmp_path / "whole/config.yaml")])
    assert saved.data.mix_tokens == 640


def test_masks_are_scaled_by_the_steps_of_the_mixture(parts, tmp_path):
    copied = []
    for path in parts:
        for ending in (".bin", ".idx"):
            (tmp_path / f"{path.name}{ending}").write_bytes(Path(f"{path}{ending}").read_bytes())
        copied.append(tmp_path / path.name)
    size = Path(f"{copied[0]}.bin").stat().st_size // 2
    Path(f"{copied[0]}.mask").write_bytes(bytes(i % 3 == 0 for i in range(size)))
    samples, _, _ = opened(words(copied, "1 1", "--vocab_size", 257))
    for step in range(5):
        rows = [samples.training[1 + step * 4 + i] for i in range(4)]
        mask = torch.stack([row.mask for row in rows])
        # two samples with every third target, two with all 16
        assert mask.mean().item() == pytest.approx(1, rel=1e-6)
        assert len(set(mask[mask > 0].tolist())) == 1
        assert 2 * 16 + 2 * 5 <= int((mask > 0).sum()) <= 2 * 16 + 2 * 6


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--data_file", "a:1,b"], ["'b' has no weight", "PREFIX:NUMBER"]),
        (["--data_file", "a:0,b:0"], ["all weights are 0"]),
        (["--data_file", "a:1,a:2"], ["a is named twice"]),
        (["--data_file", "a:1,b:1", "--magic_prime", "5"], ["--magic_prime 5", "prime of its own"]),
        (["--data_file", "a:1,b:1", "--val_split", "5"], ["--val_split 5", "--val_data_file"]),
        (["--data_file", "a:1,b:1", "--mix_tokens", "5"], ["--mix_tokens 5", "BEGIN..END"]),
        (["--data_file", "a:1,b:1", "--data_type", "numpy"], ["--data_type numpy", "binidx"]),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(argv, expected, tmp_path, capfd):
    assert train.main([*argv, "--proj_dir", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in expected), err
    assert not (tmp_path / "out").exists()


def test_parts_of_different_tokenizers_are_refused(parts, tmp_path, capfd):
    (tmp_path / "w.jsonl").write_text(json.dumps({"text": "hello world " * 40}))
    assert not make_data(
        [
            str(tmp_path / "w.jsonl"),
            "1",
            "16",
            "--output",
            str(tmp_path / "w"),
            "--tokenizer",
            "world",
        ]
    )
    assert train.main(words([parts[0], tmp_path / "w"], "1 1", "--proj_dir", tmp_path / "o")) == 2
    err = capfd.readouterr().err
    assert "different tokenizers" in err and "world" in err and "bytes" in err
