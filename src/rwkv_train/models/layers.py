"""Building blocks that several RWKV versions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rwkv_train.models.widening import widened
from rwkv_train.ops.backends.dispatch import without_autocast
from rwkv_train.ops.embedding_norm import embedding_norm
from rwkv_train.ops.head_loss import Targets, head_loss, head_token_losses
from rwkv_train.ops.head_norm_gate import IDENTITY, head_norm_gate
from rwkv_train.ops.split_tanh import split_tanh


class Linear(nn.Linear):
    """y = W x without bias.

    Starts at zero and takes nothing from the global random state: the real values come from
    `parameters.initialize` or a checkpoint.

    product_weights: see `models.rounded_weights`.
    """

    product_weights: tuple[str, ...] = ("weight",)

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class Head(Linear):
    """The output matrix, with or without the loss.

    One module call serves both uses: sharded training gathers a weight only while the forward of
    its module runs.
    """

    def forward(
        self,
        x: Tensor,
        targets: Targets | None = None,
        *,
        extra_logits: Tensor | None = None,
        per_token: bool = False,
        recomputed: bool = False,
    ) -> Tensor:
        """Returns the logits [B, T, V], or with `targets` the loss of `ops.head_loss`.

        extra_logits: [B, T, V], added to W x.
        per_token: every token's own loss [B, T], without gradients.
        recomputed: see `ops.head_loss`.
        """
        if per_token:
            assert targets is not None and targets.mask is None, "losses of all targets"
            return head_token_losses(
                x, self.weight, targets.ids, extra_logits=extra_logits, rows=targets.rows
            )
        if targets is not None:
            return head_loss(
                x, self.weight, targets, extra_logits=extra_logits, recomputed=recomputed
            )
        logits = super().forward(x)
        return logits if extra_logits is None else logits + extra_logits


class Embedding(nn.Embedding):
    """A row per token id, whose gradient is the sum over the places where the token stands.

    Starts at zero, as `Linear`.
    """

    def __init__(self, tokens: int, width: int) -> None:
        # A ready-made weight keeps the constructor away from the global random state.
        super().__init__(tokens, width, _weight=torch.zeros(tokens, width))

    def forward(self, ids: Tensor, norm: LayerNorm | None = None) -> Tensor:
        """Returns the rows of `ids`, [..., C], behind `norm` if one is given."""
        if norm is None:
            return self._rows(ids)
        if may_be_shards(self.weight, norm.weight):
            normal: Tensor = norm(self._rows(ids))
            return normal
        return embedding_norm(ids, self.weight, norm.weight, norm.bias, eps=norm.eps)

    def _rows(self, ids: Tensor) -> Tensor:
        if _adds_in_16_bit(self.weight):
            rows: Tensor = _WideEmbedding.apply(  # type: ignore[no-untyped-call]  # torch's own
                ids, self.weight
            )
            return rows
        return super().forward(ids)


class _WideEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        # The weight itself may be a shard again by the time of the backward pass.
        ctx.tokens, ctx.dtype = weight.shape[0], weight.dtype
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        # the arguments after the number of rows: no padding token, no scaling by frequency
        rows = torch.ops.aten.embedding_dense_backward(grad.float(), ids, ctx.tokens, -1, False)
        return None, rows.to(ctx.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm whose statistics and gradients are summed in fp32 (fp64 for fp64 inputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., C] to the same shape and dtype."""
        if not _adds_in_16_bit(self.weight):
            return super().forward(x)
        with without_autocast(x.device):
            weight, bias = self.weight.float(), self.bias.float()
            normal = F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
        return normal.to(x.dtype)


def may_be_shards(*weights: Tensor) -> bool:
    """Tells whether DeepSpeed's stage 3 keeps only parts of `weights` outside their own modules.

    Then neither the norm's weights in the forward pass nor the table in the backward pass of an
    operator over both need be whole. Stage 3 marks every parameter, those it keeps whole as well.
    """
    return any(hasattr(weight, "ds_id") for weight in weights)


def _adds_in_16_bit(weight: Tensor) -> bool:
    """Tells whether torch adds up the gradient of `weight` over the rows of a batch in 16 bits.

    Its kernels for CPUs do: of 8192 terms of the size of the sum's 256th part, bf16 keeps 256.
    Those for GPUs add in fp32.
    """
    return weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)


class HeadNorm(nn.Module):
    """Group norm with one group per head, RWKV-7's bonus, and the gate behind them."""

    def __init__(self, width: int, eps: float, activation: str = IDENTITY) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps
        self.activation = activation

    def forward(
        self, y: Tensor, gate: Tensor, v: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        """Returns (norm(y) + s v) act(gate), [B, T, H N]; see `ops.head_norm_gate`.

        y, v: [B, T, H, N].  gate: [B, T, H N], before its activation.  s: [B, T, H].
        """
        weight, bias = widened(self.weight, self.bias)
        return head_norm_gate(
            y, gate.to(y.dtype), weight, bias, v, s, eps=self.eps, activation=self.activation
        )


def full_precision(x: Tensor) -> Tensor:
    """Returns `x` in fp32, or as it is when it is fp64."""
    return x if x.dtype == torch.float64 else x.float()


def share_of_previous(share: Tensor) -> Tensor:
    """Returns 1 - share, the share of the token before in RWKV-4 and 5, in fp32 (fp64)."""
    return 1 - full_precision(share)


def decay_logits(x: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns tanh(x @ down) @ up, [B, T, A], in fp32 (fp64 for fp64 inputs), and w_gradient.

    x: [B, T, D].  down: [D, R].  up: [R, A].
    Rounding the product to bf16 would change the decay by up to 1.6 %. Its gradient counts in bf16,
    where x does: it is an operand of products whose results are rounded to that. It comes back
    through the second result, which has no memory, since autograd gives a tensor gradients of its
    own dtype alone; see `ops.wkv7`. None where the gradient is that of the first one.
    """
    hidden = split_tanh(x @ down).squeeze(0)
    logits, w_gradient = _DecayLogits.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden, up
    )
    return logits, w_gradient


class _DecayLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, up: Tensor) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(hidden, up)
        ctx.set_materialize_grads(False)
        with without_autocast(hidden.device):
            logits = full_precision(hidden) @ full_precision(up)
        # fp16 has no room for small gradients.
        if hidden.dtype != torch.bfloat16:
            return logits, None
        ctx.mark_non_differentiable(logits)
        zero = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        return logits, zero.expand(logits.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, wide: Tensor | None, narrow: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, up = ctx.saved_tensors
        grad = wide if narrow is None else narrow
        if grad is None:
            return None, None
        rows = grad.flatten(0, 1)
        ghidden = gup = None
        with without_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                ghidden = (rows @ up.to(grad.dtype).T).view(hidden.shape).to(hidden.dtype)
            if ctx.needs_input_grad[1]:
                gup = (hidden.flatten(0, 1).to(grad.dtype).T @ rows).to(up.dtype)
        return ghidden, gup


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """Maps [B, T, H N] to [B, T, H, N]."""
    return torch.unflatten(x, -1, (-1, head_size))


def starting_state(learnt: Tensor | None, given: Tensor | None, batch: int) -> Tensor | None:
    """Returns the state [B, H, N_value, N_key] that a sequence starts from; None: zero.

    learnt: [H, N_value, N_key], shared by the batch, used when no state is given.
    """
    if given is not None or learnt is None:
        return given
    # A view: nothing is copied, and the gradients of the batch add up in the one parameter.
    return full_precision(learnt).expand(batch, *learnt.shape)
