"""Head and cross entropy without ever holding all logits.

    logits = x W^T (+ extra),   loss = mean over tokens of  -log softmax(logits)[target]

and, in the gradient only, L2Wrap: the largest logit of each token (the first on a tie) has 1e-4
times itself added to the gradient of the token's cross entropy, which keeps logits from drifting.
The loss reported is the cross entropy alone. A mask weighs both terms of a token alike, so a loss
is the sum of its tokens' losses however they are split over calls.

The tokens are worked through in slices; a slice's gradients are computed while its logits exist,
so that memory holds one slice of logits, grad x and grad W, whatever B, T and V are. The gradient
takes the place of the logits, in the dtype of the matrix products.

| backend     | serves                                            | passes over a slice of logits |
|-------------|---------------------------------------------------|-------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | two: read, read and write     |
| `reference` | any device, torch operators one by one            | about 14                      |

Source: RWKV-LM, RWKV-v7/train_temp, class L2Wrap and the loss's gradient, which is multiplied by
the incoming one as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import FLOAT_DTYPES, describe_call
from rwkv_train.ops.backends.dispatch import AUTO, autocast_dtype, without_autocast
from rwkv_train.ops.head_loss.sliced import (
    BACKENDS,
    SlicedHeadLoss,
    SliceOptions,
    logits_dtype,
    sliced_token_losses,
)

__all__ = ["BACKENDS", "Targets", "head_loss", "head_token_losses"]

# Bytes of a slice's logits when the caller does not choose: of any slice, and the most for the sake
# of the weight's gradient, which every slice reads and writes as a whole.
SLICE_BYTES = 64 * 2**20
MOST_SLICE_BYTES = {"cpu": 512 * 2**20, "cuda": 1024 * 2**20}


class Targets(NamedTuple):
    """The tokens a head is to predict, the weight of each, and how many are computed at a time.

    ids: [B, T] int64, each in 0 .. V - 1.
    mask: [B, T] bool or number >= 0, the weights of the positions; None: all ones.
    total: what the weighted sum of the losses is divided by; None: the sum of the weights, and
        with weights that are all zero the loss is 0.
    rows: positions per slice of logits, which never exist all at once; None takes 64 MiB of logits
        or, where the weight learns, 4 C rows of up to 512 MiB (on a GPU 1 GiB): in fp32 as much as
        the weight, its gradient and its moments take.
    """

    ids: Tensor
    mask: Tensor | None = None
    total: float | None = None
    rows: int | None = None

    def with_total(self) -> Targets:
        """Returns the targets with `total` a number, which pieces of the row then share."""
        if self.total is not None:
            return self
        if self.mask is None:
            return self._replace(total=float(self.ids.numel()))
        # Without any weight the loss is 0 and not 0 / 0, as in `head_loss`.
        return self._replace(total=self.mask.double().sum().item() or 1.0)

    def between(self, tokens: slice) -> Targets:
        """Returns the targets of the positions `tokens`; `total` remains that of the whole."""
        mask = None if self.mask is None else self.mask[:, tokens]
        return self._replace(ids=self.ids[:, tokens], mask=mask)


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Targets,
    *,
    extra_logits: Tensor | None = None,
    recomputed: bool = False,
    backend: str = AUTO,
) -> Tensor:
    """Returns the scalar loss in fp32 (fp64 for fp64 inputs), differentiable once.

    x: [B, T, C]; weight: [V, C] in the same dtype (any float dtypes under autocast, which decides
        the dtype of the matrix products). Softmax, loss and sums are fp32 (fp64).
    targets: see `Targets`.
    extra_logits: [B, T, V] added to the logits, or None; gets a gradient of its own.
    recomputed: activation checkpointing will make this call again before its backward pass: now
        only the loss is computed, and a backward pass that comes all the same gives NaN.

    Gradients flow to x, weight and extra_logits where they ask for one. Raises BackendError when an
    argument does not fit or the backend asked for cannot serve the call.
    """
    options = _options(x, weight, targets, extra_logits, backend, recomputed=recomputed)
    # Autocast would round the weighted sum of losses, which is a product, too.
    with without_autocast(x.device):
        loss: Tensor = SlicedHeadLoss.apply(  # type: ignore[no-untyped-call]  # torch's own
            x.flatten(0, 1),
            weight,
            targets.ids.flatten(),
            None if targets.mask is None else targets.mask.flatten(),
            None if extra_logits is None else extra_logits.flatten(0, 1),
            options,
        )
    return loss


@torch.no_grad()
def head_token_losses(
    x: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    extra_logits: Tensor | None = None,
    rows: int | None = None,
    backend: str = AUTO,
) -> Tensor:
    """Returns every token's own cross entropy, [B, T] in fp32 (fp64), without gradients.

    ids, rows: as in `Targets`; the rest as for `head_loss`, whose value is their weighted mean.
    """
    options = _options(x, weight, Targets(ids, rows=rows), extra_logits, backend)
    extra = None if extra_logits is None else extra_logits.flatten(0, 1)
    with without_autocast(x.device):
        losses = sliced_token_losses(x.flatten(0, 1), weight, ids.flatten(), extra, options)
    return losses.view_as(ids)


def _options(
    x: Tensor,
    weight: Tensor,
    targets: Targets,
    extra_logits: Tensor | None,
    backend: str,
    *,
    recomputed: bool = False,
) -> SliceOptions:
    """Returns how a call is worked through, after checking its arguments."""
    matmul_dtype = _matmul_dtype(x, weight)
    _check(x, weight, targets, extra_logits)
    wants = (_wants(x), _wants(weight), _wants(extra_logits))
    # The vocabulary stands where other operators have their channels.
    like = x.new_empty((), dtype=matmul_dtype).expand(*x.shape[:2], weight.shape[0])
    return SliceOptions(
        rows=_rows(x, weight, targets.rows, matmul_dtype, x.device.type),
        matmul_dtype=matmul_dtype,
        wants=wants,
        total=targets.total,
        backend=backend,
        call=describe_call(
            "head_loss", like, (x, weight, extra_logits), has_state=False, has_reset=False
        ),
        recomputed=recomputed,
    )


def _wants(tensor: Tensor | None) -> bool:
    """Tells whether a backward pass may ask for the gradient of `tensor`."""
    return torch.is_grad_enabled() and tensor is not None and tensor.requires_grad


def _rows(
    x: Tensor, weight: Tensor, given: int | None, matmul_dtype: torch.dtype, device: str
) -> int:
    """Returns the tokens per slice of x [B, T, C] on a "cpu" or "cuda"."""
    if given is None:
        row = logits_dtype(device, matmul_dtype).itemsize * weight.shape[0]
        given = max(1, SLICE_BYTES // row)
        if _wants(weight):
            most = MOST_SLICE_BYTES.get(device, SLICE_BYTES)
            given = max(given, min(4 * x.shape[2], most // row))
    return min(given, x.shape[0] * x.shape[1])


def _matmul_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    for name, tensor in (("x", x), ("weight", weight)):
        _check_tensor(name, tensor)
        if tensor.dtype not in FLOAT_DTYPES:
            raise BackendError(
                f"head_loss: {name} has dtype {tensor.dtype}, expected one of float32, bfloat16, "
                f"float16, float64"
            )
    autocast = autocast_dtype(x)
    if autocast is not None:
        return autocast
    if x.dtype != weight.dtype:
        raise BackendError(
            f"head_loss: x is {x.dtype} and weight is {weight.dtype}, expected one dtype; cast one "
            f"of them, or use autocast"
        )
    return x.dtype


def _check(x: Tensor, weight: Tensor, targets: Targets, extra_logits: Tensor | None) -> None:
    ids, mask, total, rows = targets
    if x.dim() != 3 or x.numel() == 0:
        raise BackendError(f"head_loss: x has shape {list(x.shape)}, expected [B, T, C], not empty")
    if weight.dim() != 2 or weight.shape[1] != x.shape[2] or weight.numel() == 0:
        raise BackendError(
            f"head_loss: weight has shape {list(weight.shape)}, expected [V, C = {x.shape[2]}]"
        )
    _check_tensor("targets", ids)
    if ids.dtype != torch.int64:
        raise BackendError(f"head_loss: targets are {ids.dtype}, expected int64 token ids")
    if rows is not None and rows < 1:
        raise BackendError(f"head_loss: rows is {rows}, expected at least 1 token per slice")
    if total is not None and not total > 0:
        raise BackendError(f"head_loss: total is {total}, expected a number above 0")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "targets": (ids, x.shape[:2]),
        "mask": (mask, x.shape[:2]),
        "extra_logits": (extra_logits, (*x.shape[:2], weight.shape[0])),
        "weight": (weight, weight.shape),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        _check_tensor(name, tensor)
        if tensor.shape != shape:
            raise BackendError(
                f"head_loss: {name} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if tensor.device != x.device:
            raise BackendError(f"head_loss: {name} is on {tensor.device}, expected {x.device}")
    _check_range(ids, weight.shape[0])


def _check_tensor(name: str, given: object) -> None:
    if not isinstance(given, Tensor):
        raise BackendError(f"head_loss: {name} is {type(given).__name__}, expected a tensor")


def _check_range(ids: Tensor, vocabulary: int) -> None:
    """Raises BackendError when a target is no token; on a CPU, since a GPU would be waited for."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    least, largest = ids.aminmax()
    if least < 0 or largest >= vocabulary:
        wrong = int(least if least < 0 else largest)
        raise BackendError(
            f"head_loss: targets hold {wrong}, expected 0 .. {vocabulary - 1}, the rows of weight; "
            f"give tokens that are not to count any of these and weight 0 in `mask`"
        )
