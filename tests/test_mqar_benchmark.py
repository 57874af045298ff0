"""The benchmark of recall trains, scores, draws, and goes on from the runs that it has kept."""

from __future__ import annotations

import pytest

from benchmarks import mqar


def test_a_run_is_scored_at_its_beginning_and_end_and_made_once(tmp_path, monkeypatch, capsys):
    line = [str(tmp_path), "--versions", "4", "--pairs", "2", "--steps", "2"]
    mqar.main(line)
    (run,) = mqar.read_runs(tmp_path / "runs.jsonl")
    assert list(run["accuracy"]) == ["0", "2"] and all(
        0 <= a <= 1 for a in run["accuracy"].values()
    )
    assert (tmp_path / "mqar.png").read_bytes().startswith(b"\x89PNG")
    table = mqar.table([run])
    assert table in capsys.readouterr().out

    # Another number of pairs is added; what is there is not made again.
    made = []
    monkeypatch.setattr(mqar, "measure", lambda r, _: made.append(r) or {**run, **r._asdict()})
    mqar.main([*line[:3], "--pairs", "2,4", *line[5:]])
    assert [r.pairs for r in made] == [4]
    assert capsys.readouterr().out.splitlines()[2] == table.splitlines()[2]


@pytest.mark.parametrize(
    ("accuracy", "solved"), [({"0": 0.1, "50": 0.99, "100": 1.0}, "50"), ({"100": 0.98}, "-")]
)
def test_the_table_tells_when_a_task_was_learnt(accuracy, solved):
    run = {"version": "7", "width": 64, "pairs": 4, "row_tokens": 64, "vocab_size": 128}
    more = {"steps": 100, "parameters": 5, "seconds": 2.0, "cpu_seconds": 1.0}
    row = mqar.table([{**run, **more, "accuracy": accuracy}]).splitlines()[-1]
    assert row.split(" | ")[8] == solved
