"""AdamW against Muon: equal text, tokens, order and model, each at several rates.

    python -m benchmarks.optimizers [--version 6] [--rates 1e-3 2e-3 4e-3] [--steps 500] ...

Prints training loss (mean of the last tenth) and validation loss per optimizer and rate, and the
time relative to the first row. Other flags as benchmarks.compare_versions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.compare_versions import BATCH, CTX_LEN, make_pair, measure, parser


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    arguments = parser(__doc__)
    arguments.add_argument("--version", default="6")
    arguments.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    options = arguments.parse_args()
    rows: dict[tuple[str, float], dict] = {}
    with tempfile.TemporaryDirectory() as name:
        prefix = make_pair(Path(name), options.megabytes)
        for optimizer in ("adamw", "muon"):
            for rate in options.rates:
                rows[optimizer, rate] = measure(
                    options.version,
                    prefix,
                    Path(name) / f"{optimizer}-{rate}",
                    options,
                    "--optimizer",
                    optimizer,
                    "--lr_init",
                    str(rate),
                    "--lr_final",
                    str(rate / 10),
                )
    first = next(iter(rows.values()))["seconds"]
    print(
        f"\nRWKV-{options.version}, {options.layers} layers, width {options.width}, "
        f"{options.steps * CTX_LEN * BATCH:,} byte tokens of {options.megabytes:g} MB"
    )
    print(f"{'optimizer':<10}{'rate':>8}{'train loss':>12}{'val loss':>10}{'time / first':>14}")
    for (optimizer, rate), row in rows.items():
        print(
            f"{optimizer:<10}{rate:>8g}{row['train']:>12.4f}{row['val']:>10.4f}"
            f"{row['seconds'] / first:>14.2f}"
        )


if __name__ == "__main__":
    main()
