"""The host shim finds what is wrong with a kernel, and computes what CUDA would."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
import torch

from tests.cuda.host_kernels import SOURCES, compile_for_host, source_hash

FAULTY_KERNELS = r"""
#include "common/gpu/copy_async.cuh"
#include "common/gpu/mma.cuh"
#include "common/gpu/split_matrix.cuh"
#include "common/gpu/vec8.cuh"
#include "common/gpu/warp_reduce.cuh"
using namespace rwkv;

__global__ void lost_thread(float*) {
  if (threadIdx.x != 7) __syncthreads();
}
__global__ void two_barriers(float*) {
  if (threadIdx.x < 32) __syncthreads();
  else
    __syncthreads();
}
__global__ void half_a_warp_shuffles(float* out) {
  if (threadIdx.x < 16) out[0] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
  __syncthreads();
}
__global__ void writes_beyond(float*) {
  DYNAMIC_SHARED(base);
  reinterpret_cast<float*>(base)[64] = 1.0f;
}
__global__ void writes_before(float*) {
  DYNAMIC_SHARED(base);
  reinterpret_cast<float*>(base)[-1] = 1.0f;
}
__global__ void reads_unwritten(float* out) {
  DYNAMIC_SHARED(base);
  out[threadIdx.x] = reinterpret_cast<float*>(base)[threadIdx.x];
}
// Each warp reads what the other one writes, with no barrier between.
__global__ void races(float* out) {
  DYNAMIC_SHARED(base);
  auto* shared = reinterpret_cast<float*>(base);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[threadIdx.x ^ 32];
}
__global__ void reads_before_its_copy_arrives(float* out) {
  DYNAMIC_SHARED(base);
  auto* shared = reinterpret_cast<float*>(base);
  __shared__ float source[64 * 4];
  for (int i = 0; i < 4; ++i) source[threadIdx.x * 4 + i] = 1.0f;
  if (threadIdx.x < 16) copy_16_async(shared + threadIdx.x * 4, source + threadIdx.x * 4);
  commit_copies();
  const float early = threadIdx.x < 16 ? shared[threadIdx.x * 4] : 0.0f;
  wait_for_copies();
  out[threadIdx.x] = threadIdx.x < 16 ? shared[threadIdx.x * 4] : early;
  out[64 + threadIdx.x] = early;
}
// out[lane]: the sum over 16 lanes two apart of 8 values, of which this lane holds one.
__global__ void sums(float* out) {
  float x[8];
  for (int i = 0; i < 8; ++i) x[i] = static_cast<float>((threadIdx.x * 8 + i) % 13);
  reduce_scatter<8, 16, 2>(x, lane_number());
  out[threadIdx.x] = x[0];
  out[64 + threadIdx.x] = static_cast<float>(first_sum_kept<8, 16, 2>(lane_number()));
  out[128 + threadIdx.x] = writes_sum<8, 16, 2>(lane_number()) ? 1.0f : 0.0f;
}
// out[lane]: how many of the lanes up to it are odd.
__global__ void votes(float* out) {
  const int lane = lane_number();
  const unsigned odd = __ballot_sync(kAllLanes, lane % 2 == 1);
  out[threadIdx.x] = static_cast<float>(__popc(odd & ((2u << lane) - 1)));
}
// The matrices are rows 0 to 8, 8 to 16, and these again, of 16 rows of 8 elements, numbered.
template <bool kTransposed, int kShift> __global__ void matrices(float* out) {
  DYNAMIC_SHARED(base);
  auto* shared = reinterpret_cast<uint16_t*>(base);
  reinterpret_cast<unsigned*>(base)[threadIdx.x] = 2 * threadIdx.x | (2 * threadIdx.x + 1) << 16;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  unsigned x[4];
  load_matrices<kTransposed>(x, shared + threadIdx.x % 16 * 8 - kShift);
  // Both elements exactly in one float.
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = (x[i] & 0xffffu) * 1000.0f + (x[i] >> 16);
}
// Rows of 128 bytes: all of them begin in bank 0.
__global__ void crowded(float* out) {
  DYNAMIC_SHARED(base);
  if (threadIdx.x >= 32) return;
  unsigned x[4];
  load_matrices<false>(x, reinterpret_cast<uint16_t*>(base) + threadIdx.x % 16 * 64);
  out[threadIdx.x] = static_cast<float>(x[0]);
}
// Of the numbers 0 to 63.
__global__ void turned(float* out) {
  if (threadIdx.x >= 32) return;
  const unsigned x = transpose_matrix(2 * threadIdx.x | (2 * threadIdx.x + 1) << 16);
  out[threadIdx.x] = (x & 0xffffu) * 1000.0f + (x >> 16);
}

#define RUN(name) \
  extern "C" int run_##name(float* out) { return launch(name, 1, 64, 256, nullptr, out); }
RUN(lost_thread)
RUN(two_barriers)
RUN(half_a_warp_shuffles)
RUN(writes_beyond)
RUN(writes_before)
RUN(reads_unwritten)
RUN(races)
RUN(reads_before_its_copy_arrives)
RUN(sums)
RUN(votes)
RUN(turned)
#define RUN_MATRICES(name, transposed, shift)                                     \
  extern "C" int run_##name(float* out) {                                         \
    return launch(matrices<transposed, shift>, 1, 64, 256, nullptr, out);         \
  }
RUN_MATRICES(matrices, false, 0)
RUN_MATRICES(matrices_transposed, true, 0)
RUN_MATRICES(shifted, false, 1)
extern "C" int run_crowded(float* out) { return launch(crowded, 1, 64, 2048, nullptr, out); }
__global__ void nothing(float*) {}
extern "C" int run_greedy(float* out) { return launch(nothing, 1, 64, 300 << 10, nullptr, out); }
extern "C" void round_all(const float* from, uint16_t* to, int64_t count, int dtype) {
  for (int64_t i = 0; i < count; i += 8) store_vec8(to, i, DType(dtype), load_floats(from + i));
}
extern "C" void widen_all(const uint16_t* from, float* to, int64_t count, int dtype) {
  for (int64_t i = 0; i < count; i += 8) store_floats(to + i, load_vec8(from, i, DType(dtype)));
}
"""
RACES = "races"


@pytest.fixture(scope="module")
def library(build_folder):
    included = [SOURCES / name for name in re.findall(r'#include "(.+)"', FAULTY_KERNELS)]
    path = build_folder / f"faults-{source_hash(included, FAULTY_KERNELS)}.so"
    if not path.exists():
        source = path.with_suffix(".cpp")
        source.write_text(FAULTY_KERNELS, encoding="utf-8")
        compile_for_host(source, path, f"-I{SOURCES}", "-Wno-unused-parameter")
    loaded = ctypes.CDLL(str(path))
    loaded.rwkv_shim_take_error.restype = ctypes.c_char_p
    return loaded


def run(library: ctypes.CDLL, name: str, *, descending: bool = False) -> tuple[str, np.ndarray]:
    """Runs a kernel of one block of 64 threads; returns what the shim reports and its output."""
    out = np.zeros(192, dtype=np.float32)
    library.rwkv_shim_set_up(int(descending), 132, 227 * 1024)
    getattr(library, f"run_{name}")(ctypes.c_void_p(out.ctypes.data))
    return library.rwkv_shim_take_error().decode(), out


def test_a_thread_that_returns_before_a_barrier_is_reported(library):
    message, _ = run(library, "lost_thread")
    assert "wait for each other in vain" in message
    assert "threads 7 to 7 have returned" in message
    assert "threads 8 to 63 wait at __syncthreads" in message


def test_threads_at_different_barriers_are_reported_with_their_places(library):
    message, _ = run(library, "two_barriers")
    assert "threads 0 to 31 wait at __syncthreads" in message
    assert "threads 32 to 63 wait at __syncthreads" in message


def test_a_shuffle_without_the_whole_warp_is_reported(library):
    message, _ = run(library, "half_a_warp_shuffles")
    assert "threads 0 to 15 wait at __shfl_xor_sync" in message


@pytest.mark.parametrize("name", ("writes_beyond", "writes_before"))
def test_a_write_outside_shared_memory_is_reported(library, name):
    message, _ = run(library, name)
    assert message.startswith("block (0, 0, 0): wrote") and "shared memory" in message


def test_shared_memory_starts_as_nan(library):
    message, out = run(library, "reads_unwritten")
    assert message == "" and np.isnan(out[:64]).all()


def test_a_missing_barrier_changes_the_result_with_the_order_of_threads(library):
    _, ascending = run(library, RACES)
    _, descending = run(library, RACES, descending=True)
    assert not np.array_equal(ascending, descending, equal_nan=True)


def test_an_asynchronous_copy_arrives_when_it_is_waited_for_and_not_before(library):
    message, out = run(library, "reads_before_its_copy_arrives")
    assert message == ""
    assert (out[:16] == 1).all() and np.isnan(out[64:80]).all()


def test_a_launch_that_wants_more_shared_memory_than_there_is_fails(library):
    message, _ = run(library, "greedy")
    assert "more shared memory" in message


def test_shared_sums_are_the_sums_and_each_is_written_once_per_group(library):
    message, out = run(library, "sums")
    assert message == ""
    values = (np.arange(64)[:, None] * 8 + np.arange(8)) % 13
    written = np.zeros((4, 8), dtype=int)
    for lane in range(64):
        group, which = lane // 32 * 2 + lane % 2, int(out[64 + lane])
        members = [other for other in range(64) if other // 32 * 2 + other % 2 == group]
        assert out[lane] == values[members, which].sum()
        written[group, which] += int(out[128 + lane])
    assert (written == 1).all()


def test_a_vote_reaches_every_lane(library):
    message, out = run(library, "votes")
    assert message == ""
    assert (out[:64] == np.tile((np.arange(32) + 1) // 2, 2)).all()


def test_matrices_are_dealt_out_two_elements_of_each_to_a_lane(library):
    numbers = np.arange(128).reshape(2, 8, 8)
    for name, given in (("matrices", numbers), ("matrices_transposed", numbers.swapaxes(1, 2))):
        message, out = run(library, name)
        assert message == ""
        pairs = given.reshape(2, 32, 2)
        dealt = pairs[..., 0] * 1000 + pairs[..., 1]
        assert (out[:128].reshape(2, 2, 32) == dealt).all()


def test_a_matrix_in_registers_is_transposed(library):
    message, out = run(library, "turned")
    assert message == ""
    pairs = np.arange(64).reshape(8, 8).T.reshape(32, 2)
    assert (out[:32] == pairs[:, 0] * 1000 + pairs[:, 1]).all()


def test_a_matrix_whose_rows_do_not_begin_at_16_bytes_is_reported(library):
    message, _ = run(library, "shifted")
    assert "multiple of 16 bytes" in message


def test_a_matrix_whose_rows_meet_in_the_same_banks_is_reported(library):
    message, _ = run(library, "crowded")
    assert message == "ldmatrix: rows of a matrix lie in the same banks"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_elements_are_rounded_as_torch_rounds_them(library, dtype):
    number = {torch.float16: 2, torch.bfloat16: 3}[dtype]
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (80000,), generator=generator).to(torch.int32)
    edges = torch.tensor([0.0, -0.0, 65519.9, 65520.0, 6e-8, 2.9e-8, 6.1e-5, 1e-40, 3.3e38, 1.0])
    near = torch.randn(40000, generator=generator) * 10 ** torch.linspace(-9, 5, 40000)
    x = torch.cat([bits.view(torch.float32), edges, near])
    x = x[~x.isnan()]
    x = x[: len(x) // 8 * 8].contiguous()
    rounded, widened = torch.empty(len(x), dtype=dtype), torch.empty_like(x)
    address = ctypes.c_void_p
    library.round_all(
        address(x.data_ptr()), address(rounded.data_ptr()), ctypes.c_int64(len(x)), number
    )
    assert torch.equal(rounded.view(torch.int16), x.to(dtype).view(torch.int16))
    library.widen_all(
        address(rounded.data_ptr()), address(widened.data_ptr()), ctypes.c_int64(len(x)), number
    )
    assert torch.equal(widened, rounded.float())
