#!/usr/bin/env bash
# Sets up what is missing, then runs the linter, the type checker and all tests. Arguments go to
# pytest.
#   ./run-tests.sh                    everything that this machine can run
#   ./run-tests.sh tests/ops -k wkv6  a part of it
#   ./run-tests.sh --gpu-standin      the GPU's host path without a GPU, in .venv-gpu-standin
set -euo pipefail
cd "$(dirname "$0")"
if [ "${1:-}" = --gpu-standin ]; then
    exec tests/gpu_standin/run-gpu-standin.sh "${@:2}"
fi
. ./set-up-environment.sh requirements-dev.txt
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# In a fresh checkout this keeps one core busy for half a minute; the tests would leave the others
# idle for as long if they waited. What it finds is told after them.
types=$(mktemp)
"$PYTHON" -m mypy > "$types" 2>&1 &
checker=$!
# The checker has ended by then, unless the tests were interrupted: not to find it is no failure.
trap 'kill "$checker" 2> /dev/null || true; rm -f "$types"' EXIT
status=0
# How many processes, and who runs which tests, and when: tests/conftest.py.
"$PYTHON" -m pytest -n auto --dist loadfile "$@" || status=$?
if ! wait "$checker"; then
    status=1
fi
cat "$types"
exit "$status"
