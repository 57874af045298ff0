"""Made-up data on disk: a sample is a row, and the program says what is wrong in one line."""

from __future__ import annotations

import numpy as np
import pytest

import make_data
from rwkv_train.data.binidx.loss_mask import find_mask
from rwkv_train.data.binidx.manifest import read_manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.inspect.examine import inspect, verify
from rwkv_train.data.samples.dataset import TokenDataset, ValidationDataset, evenly_spread_samples
from rwkv_train.data.samples.sample_source import StepReading
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sample_order import Permutation

LINE = ("--synthetic", "mqar", "--rows", "50", "--val_rows", "9", "--output")
ENDINGS = (".bin", ".idx", ".mask", ".manifest.json")


def make(*words):
    return make_data.main([str(word) for word in words])


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Fifty rows of 64 tokens, and nine held out."""
    prefix = tmp_path_factory.mktemp("rows") / "mqar"
    assert make(*LINE, prefix) == 0
    return prefix


def rows_of(prefix):
    """[rows, 64] tokens and weights, read without the package."""
    tokens = np.fromfile(f"{prefix}.bin", "<u2").reshape(-1, 64)
    return tokens, np.fromfile(f"{prefix}.mask", np.uint8).reshape(-1, 64)


def test_a_sample_is_a_row_and_every_row_of_a_pass_comes_once(prefix):
    tokens, weights = rows_of(prefix)
    source = open_source(str(prefix), "binidx")
    mask = find_mask(str(prefix), [Binidx(prefix)], read_manifest(prefix))
    prime = magic_prime(source.tokens, 64)
    data = TokenDataset(
        source, 64, Permutation(prime), loss_mask=mask, reading=StepReading(2), vocab_size=128
    )
    seen = []
    for n in range(1, prime + 1):
        row = data.offset(n) // 64
        sample = data[n]
        assert sample.tokens.tolist() == tokens[row].tolist()
        # All four answers of the row and nothing of the next one, whose first token is a target.
        assert (sample.mask > 0).tolist() == [*(weights[row, 1:] > 0).tolist(), False]
        assert sample.targets[sample.mask > 0].tolist() == tokens[row][weights[row] > 0].tolist()
        seen.append(row)
    assert prime == 47 and sorted(seen) == list(range(47))


def test_held_out_samples_are_rows_too_and_other_ones(prefix):
    tokens, _ = rows_of(f"{prefix}_val")
    source = open_source(f"{prefix}_val", "binidx")
    offsets = evenly_spread_samples(source.tokens, 64, 4, row_tokens=64)
    assert offsets == [0, 2 * 64, 4 * 64, 7 * 64]
    samples = ValidationDataset(source, 64, offsets)
    assert [s.tokens.tolist() for s in samples] == tokens[[0, 2, 4, 7]].tolist()
    assert not {tuple(row) for row in tokens} & {tuple(row) for row in rows_of(prefix)[0]}


def test_the_report_has_examples_and_the_flags_to_train_with(prefix, capsys):
    # Made from the same settings: left as it is, and told again.
    assert make(*LINE, prefix) == 0
    printed = capsys.readouterr().out
    assert "already made" in printed
    assert "loss mask: 200 of 3200 tokens are learnt (6.2%)" in printed
    first, weights = (part[0] for part in rows_of(prefix))
    place = int(np.argmax(weights))
    shown = f" {' '.join(map(str, first[:place]))}[[ {first[place]}]]"
    assert shown in printed
    flags = "--magic_prime 47 --ctx_len 64 --vocab_size 128 --val_data_file"
    assert flags in printed.splitlines()[-1]


def test_one_command_line_makes_the_same_bytes_and_another_seed_others(prefix, tmp_path):
    assert make(*LINE, tmp_path / "again") == 0
    assert make(*LINE, tmp_path / "other", "--seed", 1) == 0
    for ending in ENDINGS[:3]:
        ours = (prefix.with_name(f"mqar{ending}")).read_bytes()
        assert (tmp_path / f"again{ending}").read_bytes() == ours
    assert (tmp_path / "other.bin").read_bytes() != (tmp_path / "again.bin").read_bytes()


@pytest.mark.parametrize(
    "task",
    [
        ("mqar",),
        ("mqar", "--filler", "random"),
        ("needle", "--depths", "0,1"),
        ("needle", "--depths", "0,1", "--needles", "3"),
        ("needle", "--form", "text", "--tokenizer", "bytes"),
    ],
)
def test_the_tools_take_made_up_data(task, tmp_path):
    prefix = tmp_path / "rows"
    assert make("--synthetic", *task, "--rows", 20, "--val_rows", 0, "-o", prefix) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"rows{ending}" for ending in ENDINGS
    )
    assert "20 documents decoded and encoded again" in verify(str(prefix), "all")
    assert f"synthetic {task[0]}" in inspect(str(prefix))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mqar", "--pairs", "0"], "error: --pairs is 0"),
        (["mqar", "--pairs", "17"], "error: --ctx_len 64 does not hold 17 pairs"),
        (["mqar", "--ctx_len", "63"], "error: --ctx_len 63 does not hold 4 pairs; it must be even"),
        (["mqar", "--vocab_size", "64"], "error: --vocab_size is 64; it must be above --ctx_len"),
        (["mqar", "--exponent", "nan"], "error: --exponent is nan"),
        (["mqar", "--rows", "2"], "error: --rows is 2"),
        (["mqar", "--val_rows", "1"], "error: --val_rows is 1"),
        (["mqar", "--seed", "-1"], "error: --seed is -1"),
        (["mqar", "--depths", "0"], "error: --depths belongs to needle tokens and needle text"),
        (["mqar", "--form", "text"], "error: --form belongs to needle"),
        (["needle", "--pairs", "2"], "error: --pairs belongs to mqar"),
        (["mqar", "--needles", "2"], "error: --needles belongs to needle tokens and needle text"),
        (["needle", "--needles", "0"], "error: --needles is 0"),
        (["needle", "--depths", "0,a"], "error: --depths '0,a' must be numbers"),
        (["needle", "--depths", "2"], "error: --depths has 2.0"),
        (["needle", "--ctx_len", "5"], "error: --ctx_len is 5"),
        (["needle", "--vocab_size", "7"], "error: --vocab_size is 7"),
        (["needle", "--form", "text", "--tokenizer", "x"], "error: --tokenizer x is neither"),
        (["needles"], "error: argument --synthetic: invalid choice"),
        (["mqar", "--piars", "3"], "error: unrecognized arguments: --piars; perhaps you meant"),
    ],
)
def test_a_mistake_ends_with_status_2_one_line_and_no_files(words, message, tmp_path, capsys):
    try:
        status = make("--synthetic", *words, "--output", tmp_path / "new" / "rows")
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    told = capsys.readouterr().err
    assert told.startswith(message) and told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_one_needle_is_what_data_from_before_there_were_several_hold(tmp_path):
    line = ("--synthetic", "needle", "--rows", 9, "--val_rows", 0, "-o", tmp_path / "rows")
    assert make(*line) == 0
    assert "needles" not in read_manifest(str(tmp_path / "rows")).made_from
    assert make(*line, "--needles", 1) == 0
    assert make(*line, "--needles", 2) == 2


def test_other_data_is_replaced_only_when_that_is_asked_for(tmp_path, capsys):
    prefix = tmp_path / "rows"
    assert make(*LINE, prefix) == 0
    before = prefix.with_suffix(".bin").read_bytes()
    assert make(*LINE, prefix, "--pairs", 3) == 2
    assert "made from something else (different: pairs)" in capsys.readouterr().err
    assert prefix.with_suffix(".bin").read_bytes() == before
    assert make(*LINE, prefix, "--pairs", 3, "--overwrite") == 0
    assert prefix.with_suffix(".bin").read_bytes() != before
