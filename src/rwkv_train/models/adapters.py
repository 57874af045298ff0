"""Low-rank adapters: small trained matrices next to frozen large ones.

An adapted matrix W [out, in] computes

    y = W x + s (B A - B0 A0) x,   s = alpha / r,   A [r, in], B [out, r]

LoRA: B starts at zero and there is no A0, B0. PiSSA: A and B start as the largest singular
directions of W, B0 A0 is their product at the start, so that W - s B0 A0 is the residual that a
merged PiSSA base would hold; keeping W itself makes the way back exact and leaves the base file
as it was, for a second thin product. DoRA: every row of the adapted matrix is rescaled to a
trained length, y_i m_i / |row i|, the norm taken as constant in the gradient.

peft is not used: it wraps the model, so that names are no longer checkpoint keys (the parameter
tables, the optimizer state and the files go by them), its merged matrices are computed in the
training precision, and it brings transformers and accelerate along for some fifty lines. Files are
written in its format, see `checkpoint.adapter_files`. All tensors of one matrix sit in one module,
which is what ZeRO 3 gathers at a time.

Source: LoRA paper (2021), section 4; PiSSA paper (2024), section 3; DoRA paper (2024), section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_train.config.schema import AdapterConfig
from rwkv_train.errors import ConfigError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.layers import Linear, full_precision
from rwkv_train.models.table import seeded_generator

# Rounds of subspace iteration for PiSSA; the directions need not be exact, see above.
_ITERATIONS = 16
# Columns more than are wanted: in such an iteration the last directions converge last.
_OVERSAMPLING = 8

_FULLY = {
    "time": re.compile(r"blocks\..*(?<!\.weight)(?<!\.bias)"),
    "ln": re.compile(r"(.*\.)?ln(0|1|2|_x|_out)\.(weight|bias)"),
    "emb": re.compile(r"emb\.weight"),
    "head": re.compile(r"head\.weight"),
}


class AdaptedLinear(Linear):
    """y = W x with W frozen, plus a trained low-rank change; formula in the module's docstring."""

    def __init__(self, base: Linear, config: AdapterConfig) -> None:
        # Not Linear's constructor, which would allocate a second weight.
        nn.Module.__init__(self)
        self.out_features, self.in_features = base.weight.shape
        self.weight = base.weight
        self.register_parameter("bias", None)
        self.scale = config.lora_alpha / config.lora_r
        self.dropout = config.lora_dropout
        like, r = self.weight, config.lora_r

        def parameter(*shape: int, trained: bool = True) -> nn.Parameter:
            return nn.Parameter(like.new_zeros(shape), requires_grad=trained)

        self.lora_A = parameter(r, self.in_features)
        self.lora_B = parameter(self.out_features, r)
        pissa = config.lora_init == "pissa"
        self.lora_A0 = parameter(r, self.in_features, trained=False) if pissa else None
        self.lora_B0 = parameter(self.out_features, r, trained=False) if pissa else None
        self.lora_magnitude = parameter(self.out_features) if config.lora_dora else None
        # The lengths of DoRA's rows are those of the weight itself.
        whole = () if config.lora_dora else ("weight",)
        start = ("lora_A0", "lora_B0") if pissa else ()
        self.product_weights = (*whole, "lora_A", "lora_B", *start)
        # A new module is in training mode, whatever the model around it is in.
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., in] to [..., out]."""
        down, up = self._pair()
        inner = F.dropout(x, self.dropout, self.training) if self.dropout else x
        # Two thin products: the matrix B A would be as large as the weight.
        y = F.linear(x, self.weight) + F.linear(F.linear(inner, down), up) * self.scale
        if self.lora_magnitude is None:
            return y
        with torch.no_grad():
            length = full_precision(self.weight + (up @ down) * self.scale).norm(dim=1)
            # a row of zeros stays one
            length = length.clamp_min(1e-12)
        scaled: Tensor = y * (full_precision(self.lora_magnitude) / length)
        return scaled.to(y.dtype)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Writes the values from which training begins: together they change nothing."""
        if self.lora_A0 is None or self.lora_B0 is None:
            limit = 1 / math.sqrt(self.in_features)
            self.lora_A.uniform_(-limit, limit, generator=generator)
        else:
            up, down = largest_directions(self.weight, len(self.lora_A), generator)
            # The forward pass multiplies by the scale, so that each factor carries its root.
            root = math.sqrt(self.scale)
            for factor, value in ((self.lora_A, down), (self.lora_B, up)):
                factor.copy_(value / root)
            self.lora_A0.copy_(self.lora_A)
            self.lora_B0.copy_(self.lora_B)
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(self.weight.norm(dim=1))

    def _pair(self) -> tuple[Tensor, Tensor]:
        """Returns the two factors of the change, of rank r or, less the start, 2 r."""
        if self.lora_A0 is None or self.lora_B0 is None:
            return self.lora_A, self.lora_B
        return torch.cat((self.lora_A, self.lora_A0)), torch.cat((self.lora_B, -self.lora_B0), 1)


def largest_directions(
    matrix: Tensor, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns [m, rank] and [rank, n], about the best approximation of `matrix` [m, n].

    Both factors carry the root of the singular values. By subspace iteration: a full
    decomposition of every matrix of a large model would take hours.
    """
    m, n = matrix.shape
    wide = matrix.float()
    width = min(rank + _OVERSAMPLING, m, n)
    basis = wide @ torch.empty(n, width).normal_(generator=generator)
    for _ in range(_ITERATIONS):
        # Orthonormal again in every round, or all columns turn towards the largest direction.
        basis = torch.linalg.qr(basis).Q
        basis = wide @ torch.linalg.qr(wide.T @ basis).Q
    basis = torch.linalg.qr(basis).Q
    u, s, v = torch.linalg.svd(basis.T @ wide, full_matrices=False)
    root = s[:rank].sqrt()
    return (basis @ u[:, :rank]) * root, root[:, None] * v[:rank]


def attach_adapters(
    model: RWKV,
    config: AdapterConfig,
    targets: Collection[str],
    *,
    seed: int,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Puts an adapter next to every matrix that `targets` names in every block.

    targets: as --lora_targets has them; empty: all large matrices.
    values: tensors by parameter name that a run resumes with; None: the start.
    Raises ConfigError for names that no matrix has and for a rank that saves nothing.
    """
    found = matrix_names(model)
    chosen = [name for name in found if not targets or any(_means(t, name) for t in targets)]
    for target in targets:
        if not any(_means(target, name) for name in found):
            raise ConfigError(
                f"--lora_targets: the model has no matrix {target}; expected some of "
                f"{', '.join(found)} with commas between"
            )
    for layer, block in enumerate(model.blocks):
        for name in chosen:
            half, matrix = name.split(".")
            path = f"blocks.{layer}.{name}"
            adapted = AdaptedLinear(getattr(getattr(block, half), matrix), config)
            _check_rank(config.lora_r, name, adapted)
            setattr(getattr(block, half), matrix, adapted)
            if values is None:
                adapted.start(seeded_generator(seed, f"{path}.lora_A"))
            else:
                _take(adapted, path, values)


def matrix_names(model: RWKV) -> list[str]:
    """Returns the large matrices of a block, such as att.key, in model order."""
    return [name for name, module in model.blocks[0].named_modules() if isinstance(module, Linear)]


def is_adapter(name: str) -> bool:
    """Tells whether a parameter belongs to an adapter, by its name."""
    return name.rpartition(".")[2].startswith("lora_")


def learns(name: str, train_type: str, fully: Collection[str] = ()) -> bool:
    """Tells whether the parameter `name` is trained.

    fully: words of --lora_train, which only --train_type lora knows.
    """
    if train_type == "all":
        return True
    if train_type == "states":
        return name.endswith(".time_state")
    if is_adapter(name):
        # A0 and B0 hold the values at the start, which are subtracted and must not move.
        return not name.endswith("0")
    return any(_FULLY[word].fullmatch(name) for word in fully)


def _means(target: str, name: str) -> bool:
    """Tells whether `target` (att.key, key or att) means the matrix `name` (att.key)."""
    return target == name or target in name.split(".")


def _check_rank(rank: int, name: str, module: AdaptedLinear) -> None:
    smallest = min(module.in_features, module.out_features)
    if rank > smallest:
        raise ConfigError(
            f"--lora_r {rank} is more than {name} has rows or columns ({smallest}): nothing would "
            f"be saved; use a smaller one"
        )


@torch.no_grad()
def _take(module: AdaptedLinear, path: str, values: Mapping[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if name.startswith("lora_"):
            parameter.copy_(values[f"{path}.{name}"])
