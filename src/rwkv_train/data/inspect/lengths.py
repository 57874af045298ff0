"""Lengths of documents: a few lines of text, or a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rwkv_train.errors import DataError, missing_package

_BAR = 40


def length_histogram(sizes: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], ...]:
    """Counts documents and tokens by length: bin k holds the lengths 2^k to 2^(k+1) - 1.

    sizes: [documents] tokens; 0 counts as 1.  Returns two arrays [bins].
    """
    # frexp is exact at powers of two, where log2 may round to the wrong bin.
    _, exponents = np.frexp(np.maximum(sizes, 1).astype(np.float64))
    documents = np.bincount(exponents - 1)
    # Exact up to 2^53 tokens.
    tokens = np.bincount(exponents - 1, weights=sizes).astype(np.int64)
    return documents, tokens


def describe_lengths(sizes: npt.NDArray[np.int32]) -> str:
    """Returns the histogram as lines with bars, and median, mean and maximum."""
    documents = length_histogram(sizes)[0]
    most = documents.max()
    lines = [
        f"tokens per document: median {np.median(sizes):.0f}, mean {sizes.mean():.1f}, largest "
        f"{sizes.max()}"
    ]
    for k in range(_first_bin(documents), len(documents)):
        bar = "#" * int(np.ceil(_BAR * documents[k] / most))
        lines.append(f"  {2**k:>10} to {2 ** (k + 1) - 1:<10} {documents[k]:>12} {bar}")
    return "\n".join(lines)


def draw_lengths(path: Path, sizes: npt.NDArray[np.int32], title: str) -> None:
    """Writes the histogram as a PNG; DataError when it cannot be written."""
    try:
        # Without pyplot, which keeps every figure alive and may look for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise DataError(missing_package(str(path), "matplotlib", "plot")) from error

    counts = length_histogram(sizes)
    first = _first_bin(counts[0])
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    labels = [str(2**k) if k < 10 else f"{2 ** (k - 10)}k" for k in range(len(counts[0]))]
    for axes, values, name in zip(figure.subplots(2), counts, ("documents", "tokens")):
        axes.bar(labels[first:], values[first:])
        axes.set_ylabel(name)
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("tokens per document, from this number to twice as many (1k: 1024)")
    figure.suptitle(title)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _first_bin(documents: npt.NDArray[np.int64]) -> int:
    """Returns the first bin that is not empty."""
    return int(np.flatnonzero(documents)[0])
