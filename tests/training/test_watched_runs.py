"""A run that everything watches: the same run, and every log tells the same of it."""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import train
from rwkv_train.report.life_times import life_seconds
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.run_lives import read_lives
from rwkv_train.report.run_records import METRICS_FILE, TIMES_FILE, read_metrics, read_times
from rwkv_train.training.reporting.curve_log import curves
from rwkv_train.training.reporting.metrics_file import MetricsFile
from rwkv_train.training.reporting.records import StartRecord
from rwkv_train.training.reporting.wandb_log import RWKV_LM_KEYS
from tests.training.runs import assert_same_weights, losses

# Validated after steps 3, 6, 9 and 12; saved after 4, 8 and 12, and at mini-epochs, after 5 and 10.
PAUSE = 8
SAVES, VALIDATIONS = {4, 5, 8, 10}, {3, 5, 6, 9, 10}
Points = dict[int, dict[str, float]]


class Watched(NamedTuple):
    """Folders of a run alone and of one that is watched and paused; what the latter told."""

    alone: Path
    folder: Path
    names: list[str]
    wandb: Points
    printed: str


@pytest.fixture(scope="module")
def watched(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("tensorboardX")
    root = tmp_path_factory.mktemp("watched")
    names: list[str] = []
    points: Points = defaultdict(dict)

    class Run:
        id = "abc"

        def log(self, values: dict[str, Any], step: int) -> None:
            points[step].update(values)

        def finish(self) -> None:
            pass

    def init(**options: Any) -> Run:
        names.append(options["name"])
        return Run()

    def run(folder: str, **changes: object) -> None:
        values = {
            **{"data_file": corpus, "val_data_file": f"{corpus}_val", "proj_dir": root / folder},
            **{"rwkv_version": 7, "n_layer": 2, "n_embd": 64, "ctx_len": 32, "micro_bsz": 4},
            **{"exit_tokens": 1500, "epoch_steps": 5, "epoch_save": 1, "val_every": 3},
            **{"val_samples": 3, "save_every_steps": 4, "accelerator": "cpu", "devices": 1},
            **{"num_workers": 0, "plot": 0, "wkv_backend": "chunked", **changes},
        }
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        assert train.main(words) == 0

    watching = {"tensorboard": 1, "run_name": "my run", "wandb": "p", "wandb_mode": "offline"}
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(wandb, "init", init)
        run("alone")
        run("seen", max_steps=PAUSE, profile=2, **watching)
        run("seen", profile=9, **watching)
    yield Watched(root / "alone", root / "seen", names, points, printed.getvalue())


def drawn_events(folder: Path) -> Points:
    """Step -> key -> value as TensorBoard shows event files: a restart hides what it repeats."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    points: Points = defaultdict(dict)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            # Length, its checksum, the event, its checksum.
            (size,) = struct.unpack_from("<Q", data)
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.session_log.status == SessionLog.START:
                points = defaultdict(dict, {n: p for n, p in points.items() if n < event.step})
            for value in event.summary.value:
                points[event.step][value.tag] = value.simple_value
    return points


def test_watching_changes_neither_losses_nor_weights(watched: Watched):
    assert losses(watched.folder) == losses(watched.alone)
    assert_same_weights(watched.alone / "rwkv-final.pth", watched.folder / "rwkv-final.pth")


def test_all_logs_have_the_same_figures_under_the_same_keys(watched: Watched):
    expected: Points = defaultdict(dict)
    for record in [*read_metrics(watched.folder), *read_times(watched.folder)]:
        # Steps count from 1 in curves; a start stands at the steps before it.
        step = record["step"] + ("start_up_seconds" not in record)
        expected[step].update(curves(record))
    assert set(expected) == set(range(13))
    drawn = drawn_events(watched.folder / "tensorboard" / "my run")
    assert {n: set(p) for n, p in drawn.items() if p} == {n: set(p) for n, p in expected.items()}
    for step, found in expected.items():
        assert drawn[step] == pytest.approx(found, rel=1e-6)
        theirs = {name: watched.wandb[step].pop(name, None) for name in RWKV_LM_KEYS}
        assert watched.wandb[step] == found
        for name, (key, unit) in RWKV_LM_KEYS.items():
            assert theirs[name] == (found[key] * unit if key in found else None)
    assert watched.names == ["my run"] * 2


def test_shares_of_time_stand_behind_what_took_it(watched: Watched):
    records = [r for r in read_metrics(watched.folder) if "loss" in r]
    for record in records:
        shares = [record[f"{name}_share"] for name in ("data", "save", "validation")]
        assert shares[0] > 0 and 0 < sum(shares) < 1
        # A pause behind a step belongs to the next record; that behind the last to the start's end.
        done = record["step"]
        assert (shares[1] > 0) is (done in SAVES - {PAUSE})
        assert (shares[2] > 0) is (done in VALIDATIONS)
        assert record["communication_share"] == 0 and record["memory"] > 10**7
        assert record["mfu"] > 0 and record["mfu_card"] is None
        assert record["seconds"] > 0
    starts = [r for r in read_times(watched.folder) if "start_up_seconds" in r]
    ends = [r for r in read_times(watched.folder) if "ending_seconds" in r]
    assert [(r["step"], r["tokens"]) for r in starts] == [(0, 0), (PAUSE, PAUSE * 128)]
    assert [(r["step"], r["tokens"]) for r in ends] == [(PAUSE - 1, PAUSE * 128), (11, 12 * 128)]
    assert all(r["start_up_seconds"] > 0 and r["lost_seconds"] == 0 for r in starts)
    assert all(0 < r["save_share"] < 1 and r["validation_share"] > 0 for r in ends)


def test_the_time_of_both_lives_is_shared_out_and_told(watched: Watched):
    lives = read_lives(watched.folder)
    expected = [(n, event) for n in (1, 2) for event in ("start", "steps", "end")]
    assert [(line["life"], line["event"]) for line in lives] == expected
    history = RunHistory(watched.folder)
    history.update()
    seconds = life_seconds(history)
    assert sum(seconds.values()) == pytest.approx(lives[-1]["until"] - lives[0]["began"])
    assert seconds["reload"] > 0 and seconds["ending"] > 0 and seconds["lost"] == 0
    last = [record for record in read_metrics(watched.folder) if "loss" in record][-1]
    assert 0 < last["goodput"] < 1
    told = [line for line in watched.printed.splitlines() if line.startswith("goodput ")]
    # At the end of the first, when the second resumes, and at its end.
    assert sum("over 2 lives" in line for line in told) == 2
    assert "reading the state" in told[-1]


def test_norms_by_kind_make_up_the_norm_of_all_gradients(watched: Watched):
    (record,) = [r for r in read_metrics(watched.folder) if "grad_norms" in r]
    kinds = record["grad_norms"]
    assert record["step"] == 0
    assert set(kinds) == {
        *("embedding", "head", "time mix", "low ranks", "channel mix", "vectors and norms")
    }
    assert sum(norm**2 for norm in kinds.values()) ** 0.5 == pytest.approx(record["grad_norm"])


def test_a_profile_is_a_trace_and_a_table_in_words(watched: Watched):
    trace = json.loads(gzip.decompress((watched.folder / "profile-5.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"waiting for data", "validation and samples", "aten::mm"} <= names
    heading, columns, *items = (watched.folder / "profile-5.txt").read_text().splitlines()
    assert heading.startswith("profile of 2 steps from step 5: ") and "share" in columns
    assert len(items) == 11 and items[-1].endswith("smaller items")
    shares = [float(item.split()[1].rstrip("%")) for item in items]
    assert sum(shares) == pytest.approx(100, abs=0.6) and shares[:-1] == sorted(shares[:-1])[::-1]
    words = "\n".join(items)
    assert "Python and the loop" in words and "wkv7 by chunks" in words
    assert f"{heading}\n{columns}" in watched.printed
    # The second start has fewer steps than it takes to warm up.
    assert "no profile: --profile begins after 4 steps of a start" in watched.printed
    assert len(list(watched.folder.glob("profile-*"))) == 2


def test_what_a_resumed_run_does_again_is_counted_as_lost(tmp_path: Path):
    lines = [
        {"step": 0, "tokens": 0, "start_up_seconds": 5.0, "lost_seconds": 0.0},
        {"step": 0, "tokens": 128, "loss": 1.0, "seconds": 2.0},
        {"step": 1, "tokens": 256, "loss": 1.0, "seconds": 3.0},
        {"step": 1, "val_loss": 1.0},
        {"step": 1, "tokens": 256, "ending_seconds": 7.0},
        {"step": 2, "tokens": 256, "start_up_seconds": 11.0, "lost_seconds": 13.0},
        {"step": 2, "tokens": 384, "loss": 1.0, "seconds": 17.0},
    ]
    times = [line for line in lines if "loss" not in line and "val_loss" not in line]
    for name, part in ((METRICS_FILE, [r for r in lines if r not in times]), (TIMES_FILE, times)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in part))
    log = MetricsFile(tmp_path, 128)
    log.on_start(StartRecord(1, 128, 19.0))
    log.close()
    assert read_metrics(tmp_path) == lines[1:2]
    *kept, start = read_times(tmp_path)
    assert kept == lines[:1]
    # 3 + 7 + 11 + 13 + 17: also what had been lost by the start that is lost now
    expected = {"step": 1, "tokens": 128, "start_up_seconds": 19.0, "lost_seconds": 51.0}
    assert start == expected


def test_a_run_does_without_tensorboard_s_writer_where_it_is_not_installed(
    run_training: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert run_training(tensorboard=1, max_steps=2) == 0
    err = capsys.readouterr().err
    assert err.count("--tensorboard 1 needs the Python package tensorboardX") == 1
    assert "rwkv-train[tensorboard]" in err and len(losses(tmp_path / "out")) == 2


def test_a_curve_is_a_number_under_its_keys():
    record = {
        **{"step": 3, "loss": 1.5, "mfu": None, "skipped": "loss nan", "samples": [1, 4]},
        **{"eval": {"task": {"acc": 0.5, "said": []}}, "save_best": True},
    }
    found = {"loss": 1.5, "skipped": 1.0, "eval/task/acc": 0.5, "save_best": True}
    assert curves(record) == found
