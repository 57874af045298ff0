"""Every version exported to every target: how far the target's logits are from ours in fp64.

    python -m benchmarks.export_errors                    the table of docs/exports.md
    python -m benchmarks.export_errors --to gguf --precision fp16

Two models a version, of 3 layers and width 128: one with random weights in which nothing is zero
and all ranks are different, one trained for some steps. Prints a row of Markdown for each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import OneLineParser, program
from rwkv_train.export.exporting import export_model
from rwkv_train.export.target import ExportOptions, ExportTarget
from rwkv_train.export.target_table import TARGETS
from rwkv_train.export.verification import LogitsReport
from tests.export.exported_models import KINDS, source_model
from tests.models.tiny import VERSIONS

_SIZES = {"n_layer": 3, "n_embd": 128}
_HEADS = {"head_size": 64}


def exported(
    version: str, kind: str, target: ExportTarget, options: ExportOptions
) -> LogitsReport | None:
    """Returns what the check of an export found, None for a model that the target refuses."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = _SIZES if version == "4" else _SIZES | _HEADS
        model = source_model(version, kind, Path(folder), **sizes)
        if target.refuses(model, options) is not None:
            return None
        out = Path(folder) / f"out{target.suffix}"
        report = export_model(model, target, options, out, card=False, say=lambda line: None)
    assert report is not None, "logits are compared"
    return report


def cells(report: LogitsReport) -> list[str]:
    """Returns the columns from the library on."""
    errors = [
        "–" if found is None else f"{found.error:.1e}"
        for found in (report.at_once, report.one_by_one)
    ]
    found = report.at_once or report.one_by_one
    assert found is not None, "a library that was there computes something"
    ours = (f"{report.ours.error:.1e}", f"{report.ours_recurrent.error:.1e}")
    allowed = f"{report.largest:.1e}"
    return [report.library, *errors, *ours, allowed, f"{found.same} of {found.tokens}"]


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; prints the table."""
    p = OneLineParser(prog="python -m benchmarks.export_errors")
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.description = __doc__
    p.add_argument("--to", choices=tuple(TARGETS), nargs="+", default=list(TARGETS))
    p.add_argument("--precision", default="fp32")
    a = p.parse_args(argv)
    titles = ("at once", "token by token", "ours", "ours, token by token", "allowed", "same token")
    print(f"| model, {a.precision} | target | library | {' | '.join(titles)} |")
    print("|---" * (len(titles) + 3) + "|")
    reasons = {}
    for target in (TARGETS[name] for name in a.to if a.precision in TARGETS[name].precisions):
        for version, kind in itertools.product(VERSIONS, KINDS):
            report = exported(version, kind, target, ExportOptions(a.precision))
            if report is None:
                continue
            if report.unavailable is not None:
                reasons[target.name] = report.unavailable
                break
            row = (f"RWKV-{version}, {kind}", target.name, *cells(report))
            print(f"| {' | '.join(row)} |", flush=True)
    for name, reason in reasons.items():
        print(f"\n{name}: logits not computed, {reason}")
    return 0


if __name__ == "__main__":
    main()
