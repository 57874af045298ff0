"""Token shift: every token mixed with the one before it, several times in one pass.

With x' the token before x (zero at the start, and where a document starts), the results are

    y_i = x + (x' - x) (mixes_i + moves_i)        i = 1 ... n

mixes are parameters, one share per channel; moves, if given, add to them token by token (RWKV-6).

| backend     | serves                                            | memory kept for backward     |
|-------------|---------------------------------------------------|------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | the arguments                |
| `reference` | any device, torch operators one by one            | x' - x, every token's shares |

On a GPU without nvcc, and for fp64 there, `reference` serves, and the log says so once. It moves
the tokens of 16-bit models in fp32. Operators in their own dtype would move half as much but round
x' - x as well, and without nvcc the WKV operators lack their kernels too, which costs far more.

Source: RWKV papers, "token shift"; with moves: RWKV-6 paper (Finch), data-dependent token shift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import (
    FLOAT_DTYPES,
    check_floats,
    check_reset,
    check_sequences,
    describe_call,
    prepare,
)
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch
from rwkv_train.ops.precision import compute_dtype

BACKENDS = backends_of("token_shift", "native", "reference")
# The n of the kernels' parameters, cuda/token_shift/token_shift.h.
MOST_MIXES = 8


def token_shift(
    x: Tensor,
    mixes: Tensor,
    last: Tensor | None = None,
    *,
    moves: Tensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str = AUTO,
    reset: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Returns the n mixed sequences y_i, each [B, T, C]; computed in fp32 (fp64) and rounded once.

    x: [B, T, C], one of fp32, bf16, fp16, fp64.
    mixes: [n, C], any float dtype, n from 1 to 8.
    last: [B, C], the token before x[:, 0]; None: zero.
    moves: [n, B, T, C], any float dtype, added to the mixes.
    dtype: of the results; None: that of x. fp64 goes with fp64 only.
    reset: [B, T] bool; True where a document starts, which has no predecessor.

    Gradients flow to every float argument. Raises BackendError when an argument does not fit or
    the backend asked for cannot serve the call.
    """
    like = check_sequences("token_shift", {"x": x}, "[B, T, C]")
    batch, time, width = like.shape
    count = _checked_count(mixes, width)
    mixes = prepare("token_shift", "mixes", mixes, (count, width), like)
    if last is not None:
        last = prepare("token_shift", "last", last, (batch, width), like).to(like.dtype)
    if moves is not None:
        # 16-bit moves are read as they are: a copy in fp32 would be the largest tensor of all.
        check_floats("token_shift", "moves", moves, (count, batch, time, width), like)
        if compute_dtype(moves.dtype) != compute_dtype(like.dtype):
            moves = moves.to(compute_dtype(like.dtype))
    dtype = _result_dtype(dtype, like)
    check_reset("token_shift", reset, like)
    call = describe_call(
        "token_shift",
        like,
        (x, mixes, last, moves),
        has_state=last is not None,
        has_reset=reset is not None,
    )
    results = dispatch(BACKENDS, backend, call, (x, mixes, last, moves, reset, dtype))
    return tuple(results)


def _checked_count(mixes: object, width: int) -> int:
    """Returns the n of `mixes`, [n, width]; raises BackendError when there is no possible one."""
    count = mixes.shape[0] if isinstance(mixes, Tensor) and mixes.dim() == 2 else 0
    if 1 <= count <= MOST_MIXES:
        return count
    if isinstance(mixes, Tensor):
        got = f"has shape {list(mixes.shape)}"
    else:
        got = f"is {type(mixes).__name__}"
    raise BackendError(
        f"token_shift: mixes {got}, expected [n, {width}] with n from 1 to {MOST_MIXES}; make "
        f"two calls for more"
    )


def _result_dtype(given: torch.dtype | None, like: Tensor) -> torch.dtype:
    """Returns the dtype of the results; raises BackendError unless it goes with that of x."""
    dtype = like.dtype if given is None else given
    if dtype not in FLOAT_DTYPES or compute_dtype(dtype) != compute_dtype(like.dtype):
        raise BackendError(
            f"token_shift: dtype is {dtype}, expected "
            + ("float64, as x" if like.dtype == torch.float64 else "float32, bfloat16 or float16")
        )
    return dtype
