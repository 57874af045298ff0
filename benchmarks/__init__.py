"""Measurements: `python -m benchmarks.<name>` from the checkout's top."""

import sys
from pathlib import Path

# This copy's package comes before an installed one; programs that a benchmark starts find it too
# because they are the scripts beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
