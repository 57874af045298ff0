"""The activation of all channel mixes: z = relu(p)².

    gp = 2 relu(p) gz          0 where p is 0 or below, whatever gz; NaN in p passes through

| backend     | serves                                            | memory kept for backward |
|-------------|---------------------------------------------------|--------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | p                        |
| `reference` | any device, torch operators one by one            | p, relu(p)               |

On a GPU without nvcc, and for fp64 there, `reference` serves, and the log says so once.

Source: "Primer: Searching for Efficient Transformers for Language Modeling", squared ReLU; RWKV
papers, channel mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, describe_call
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("squared_relu", "native", "reference")


def squared_relu(p: Tensor, *, backend: str = AUTO) -> Tensor:
    """Returns relu(p)², [B, T, F] in the dtype of p; computed in fp32 (fp64) and rounded once.

    p: [B, T, F], one of fp32, bf16, fp16, fp64.

    Raises BackendError when p does not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("squared_relu", {"p": p}, "[B, T, F]")
    call = describe_call("squared_relu", like, (p,), has_state=False, has_reset=False)
    z: Tensor = dispatch(BACKENDS, backend, call, (p,))
    return z
