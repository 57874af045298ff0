"""Runs train.py as a process that comes later than the others.

python -m tests.launch.come_late SECONDS FLAGS...
"""

from __future__ import annotations

import sys
import time

import train

if __name__ == "__main__":
    time.sleep(float(sys.argv[1]))
    sys.exit(train.main(sys.argv[2:]))
