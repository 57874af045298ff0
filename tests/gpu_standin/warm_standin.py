"""The process that the runs are forked from: `python -m tests.gpu_standin.warm_standin FD`."""

from __future__ import annotations

import sys

from tests.gpu_standin.asking import keep_from_asking
from tests.training.warm_start import serve_warm

if __name__ == "__main__":
    keep_from_asking()
    serve_warm(int(sys.argv[1]), "gpu")
