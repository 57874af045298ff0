"""The benchmark of needles trains, asks at every length and depth, draws, and keeps its runs."""

from __future__ import annotations

from benchmarks import needles
from benchmarks.mqar import read_runs


def test_a_run_is_asked_at_every_length_and_depth_and_made_once(tmp_path, monkeypatch, capsys):
    line = [str(tmp_path), "--versions", "4", "--needles", "2", "--steps", "2", "--width", "32"]
    needles.main([*line, "--lengths", "32,40"])
    (run,) = read_runs(tmp_path / "runs.jsonl")
    assert list(run["found"]) == ["32", "40"]
    for found in run["found"].values():
        assert list(found) == ["0", "0.25", "0.5", "0.75", "1"]
        # Two steps teach nothing: chance is 1 of 64 values.
        assert all(0 <= share < 0.5 for share in found.values())
    assert (tmp_path / "needles.png").read_bytes().startswith(b"\x89PNG")
    table = needles.table([run])
    assert table in capsys.readouterr().out and len(table.splitlines()) == 4
    row = table.splitlines()[2].split(" | ")
    assert row[1:6] == ["32", "2", "32", "2", "32"]
    assert row[6] == f"{run['found']['32']['0']:.3f}"

    # Another number of needles is added; what is there is not made again.
    made = []
    monkeypatch.setattr(needles, "measure", lambda r, *_: made.append(r) or {**run, **r._asdict()})
    needles.main([*line[:3], "--needles", "2,3", *line[5:]])
    assert [r.needles for r in made] == [3]
