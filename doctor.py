"""Finds why a run does not start: `python doctor.py --help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

# Works in a bare checkout: this copy's package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from rwkv_train.doctor.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
