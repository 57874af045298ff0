#!/usr/bin/env bash
# Runs every CUDA kernel once under compute-sanitizer: memcheck (addresses), racecheck (shared memory
# without a barrier between), synccheck (barriers) and initcheck (memory read before it is written).
# Usage: cuda/sanitize.sh [PYTHON]      needs a CUDA device and the CUDA toolkit; some minutes
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
python=${1:-python3}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
  echo "compute-sanitizer is missing; it comes with the CUDA toolkit" >&2
  exit 2
fi
# Builds and loads the kernels once, outside the sanitizer.
"$python" -m tests.cuda.gpu_calls
for tool in memcheck racecheck synccheck initcheck; do
  echo "== $tool"
  # torch's caching allocator would hide a write beyond a tensor from memcheck.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
    --kernel-name-exclude kernel_substring=at::native "$python" -m tests.cuda.gpu_calls
done
echo "compute-sanitizer found nothing"
