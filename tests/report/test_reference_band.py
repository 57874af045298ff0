"""A run is compared with known-good ones of the same configuration, and with no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.reference_curves import DEMO_FLAGS, DEMO_STEPS, band_of
from rwkv_train.report.reference_band import compare_with_reference, reference_curves, window_means
from rwkv_train.report.run_history import RunHistory
from tests.checkout import ROOT
from tests.report.made_runs import SETTINGS, make_run, step_record

CURVES = {
    "applies_to": {"n_layer": 4, "global batch": 8, "data": "python-bytes"},
    "bands": {
        "6": {
            "runs": 3,
            "steps": [2, 4, 6, 8, 10],
            "tokens": [4096, 8192, 12288, 16384, 20480],
            "low": [5.0, 4.0, 3.0, 2.0, 1.0],
            "middle": [5.5, 4.5, 3.5, 2.5, 1.5],
            "high": [6.0, 5.0, 4.0, 3.0, 2.0],
        }
    },
}
KNOWN = {
    **{"n_layer": 4, "rwkv_version": "6", "data_file": "data/python-bytes"},
    **{"micro_bsz": 4, "devices": 2, "accumulate_grad_batches": 1, "num_nodes": None},
}


def verdict(folder: Path, losses: list[float], **settings: object):
    """How a run with these losses compares."""
    history = RunHistory(
        make_run(folder, [step_record(i) | {"loss": v} for i, v in enumerate(losses)])
    )
    history.update()
    return compare_with_reference({**KNOWN, **settings}, history, CURVES)


MIDDLE = [5.6, 5.4, 4.6, 4.4, 3.6, 3.4, 2.6, 2.4, 1.6, 1.4]


@pytest.mark.parametrize(
    ("added", "kind"), [(0.0, "in"), (0.4, "in"), (0.7, "above"), (-0.4, "in"), (-0.7, "below")]
)
def test_the_newest_windows_decide(tmp_path: Path, added: float, kind: str):
    found = verdict(tmp_path, [loss + added for loss in MIDDLE])
    assert found.kind == kind and found.band is not None
    assert f"up to step 10 it is {1.5 + added:.3f}" in found.words
    # A mean stands in the middle of its steps.
    assert found.band[1] == {"step": [1, 3, 5, 7, 9], "tokens": [2048, 6144, 10240, 14336, 18432]}
    assert "lie between 1.000 and 2.000" in found.words and "band ends at step 10" in found.words


def test_single_steps_outside_are_no_news(tmp_path: Path):
    assert verdict(tmp_path, [9.0, 9.0, *MIDDLE[2:8], 9.0, 0.4]).kind == "in"


def test_beyond_the_band_nothing_is_said_and_before_it_one_has_to_wait(tmp_path: Path):
    assert verdict(tmp_path, [*MIDDLE, 9.0, 9.0, 9.0]).kind == "in"
    early = verdict(tmp_path, MIDDLE[:1])
    assert early.kind == "early" and "begins at step 2" in early.words
    # A window that is not complete does not count.
    assert "up to step 2 it" in verdict(tmp_path, MIDDLE[:3]).words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_layer", 12, "n_layer is 12, not 4"),
        ("micro_bsz", 8, "global batch is 16, not 8"),
        ("data_file", "data/mine", "data is mine, not python-bytes"),
        ("rwkv_version", "3", "no reference for this version"),
    ],
)
def test_another_configuration_has_no_reference(tmp_path: Path, name: str, value, words: str):
    found = verdict(tmp_path, MIDDLE, **{name: value})
    assert found.kind == "none" and words in found.words and found.band is None


def test_windows_are_means_of_the_steps_that_were_taken():
    steps, losses = np.array([1.0, 2, 4, 5, 6]), np.array([1.0, 2, 4, 5, 9])
    np.testing.assert_array_equal(window_means(steps, losses, [2, 4, 6, 8]), [1.5, 4, 7, np.nan])


def test_the_curves_that_are_shipped_fit_the_demo():
    found = reference_curves()
    given = {name: yaml.safe_load(value) for name, value in DEMO_FLAGS.items()}
    for name in found["applies_to"].keys() & given.keys():
        # YAML takes 3e-3 for a text.
        assert found["applies_to"][name] == type(found["applies_to"][name])(given[name]), name
    assert set(found["bands"]) == {"4", "5", "6", "7"}
    for band in found["bands"].values():
        low, middle, high = (np.array(band[name]) for name in ("low", "middle", "high"))
        assert len(low) == len(band["steps"]) == len(band["tokens"]) > 10
        assert (low < middle).all() and (middle < high).all()
        assert band["tokens"] == [2048 * step for step in band["steps"]]


def test_the_flags_of_the_program_are_those_of_the_demo():
    script = (ROOT / "demo-training-run.sh").read_text(encoding="utf-8")
    cpu = script[script.index("# Small enough to learn") :]
    for name, variable in (
        *(("n_layer", "N_LAYER"), ("n_embd", "N_EMBD"), ("ctx_len", "CTX_LEN")),
        *(("micro_bsz", "M_BSZ"), ("precision", "PRECISION"), ("strategy", "STRATEGY")),
        *(("lr_init", "LR_INIT"), ("lr_final", "LR_FINAL"), ("epoch_steps", "EPOCH_STEPS")),
    ):
        assert f"{variable}=${{{variable}:-{DEMO_FLAGS[name]}}}" in cpu, name
    assert f"CPU_STEPS=${{CPU_STEPS:-{DEMO_STEPS}}}" in cpu
    for name in ("warmup_steps", "beta1", "beta2", "adam_eps", "weight_decay", "grad_clip"):
        assert f"--{name} {DEMO_FLAGS[name]}" in script, name


def test_a_run_of_the_demo_is_recognised(tmp_path: Path):
    settings = {k: v for part in yaml.safe_load(SETTINGS).values() for k, v in part.items()}
    history = RunHistory(make_run(tmp_path, []))
    assert compare_with_reference(settings, history, reference_curves()).kind == "early"


def test_a_band_is_as_wide_as_runs_differ_and_goes_on_where_one_ends():
    # 2 and 3 stand a fifth from their middle, so that the band is three fifths wide on each side.
    found = band_of([[2.0, 2.0, 1.0], [3.0, 2.0]])
    assert found["steps"] == [5, 10, 20] and found["tokens"] == [10240, 20480, 40960]
    assert found["middle"] == [2.5, 2.0, 1.0]
    # Equal runs have a least width; the last window has one run, and the width of the first.
    assert found["low"] == pytest.approx([1.0, 1.88, 0.4])
    assert found["high"] == pytest.approx([4.0, 2.12, 1.6])
