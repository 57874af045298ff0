#!/usr/bin/env bash
# What ./run-tests.sh --gpu-standin does: makes .venv-gpu-standin, once, with a CUDA build of torch
# (5.5 GB), and runs tests/gpu_standin in it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
wanted=tests/gpu_standin/requirements.txt folder=.venv-gpu-standin
stamp=$folder/installed-$(cat requirements*.txt $wanted | cksum | cut -d' ' -f1)
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "error: the stand-in takes the place of CUDA's libraries for Linux on x86_64," \
         "and this is $(uname -sm)" >&2
    exit 2
fi
if [ ! -e "$stamp" ]; then
    [ -x $folder/bin/python ] || "${PYTHON:-python3}" -m venv $folder
    echo "Installing $wanted into $folder (once; 5.5 GB)"
    $folder/bin/python -m pip install --quiet --disable-pip-version-check -r $wanted
    touch "$stamp"
fi
export PATH="$PWD/$folder/bin:$PATH" PYTHONPATH="$PWD/src"
exec $folder/bin/python -m pytest --gpu-standin tests/gpu_standin "$@"
