"""The tanh between the two products of a low rank, for n of them that share the first product.

    y_i = tanh(x_i)        gx_i = gy_i (1 - y_i²)        i = 1 ... n

A token's n ranks lie side by side in x, where one product has written them, and apart in y, since
every one has a second product of its own: the tanh moves them on its way, and their gradients back.

| backend     | serves                                | memory kept for backward |
|-------------|---------------------------------------|--------------------------|
| `native`    | C++ on the CPU; needs a compiler      | y                        |
| `reference` | any device, torch operators one by one | y                       |

Source: RWKV-6 paper (data-dependent token shift and decay), RWKV-7 paper (decay).
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import check_sequences, describe_call
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("split_tanh", "native", "reference")


def split_tanh(x: Tensor, parts: int = 1, *, backend: str = AUTO) -> Tensor:
    """Returns tanh(x), [n, B, T, R] in the dtype of x; computed in fp32 (fp64), rounded once.

    x: [B, T, n R], one of fp32, bf16, fp16, fp64.  parts: n.

    Raises BackendError when x does not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("split_tanh", {"x": x}, "[B, T, n R]")
    if parts < 1 or like.shape[2] % parts != 0:
        raise BackendError(
            f"split_tanh: x has {like.shape[2]} channels and parts is {parts}, expected a number "
            "of parts that divides the channels"
        )
    call = describe_call("split_tanh", like, (x,), has_state=False, has_reset=False)
    y: Tensor = dispatch(BACKENDS, backend, call, (x, parts))
    return y
