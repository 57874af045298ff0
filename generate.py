"""Generates text: `python generate.py --load_model X.pth "Once upon a time"`."""

from __future__ import annotations

import sys
from pathlib import Path

# Works in a bare checkout: this copy's package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from rwkv_train.command_line import packages_named

with packages_named():
    from rwkv_train.inference.__main__ import main

if __name__ == "__main__":
    with packages_named():
        sys.exit(main(sys.argv[1:]))
