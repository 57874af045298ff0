#!/usr/bin/env bash
# Sets up what is missing, then runs the linter and all tests. Arguments go to pytest.
#   ./run-tests.sh                    everything that this machine can run
#   ./run-tests.sh tests/ops -k wkv6  a part of it
set -euo pipefail
cd "$(dirname "$0")"
. ./set-up-environment.sh requirements-dev.txt
"$PYTHON" -m ruff check .
# A process per core; the tests of a file stay together because they share what is slow to make.
exec "$PYTHON" -m pytest -n auto --dist loadfile "$@"
