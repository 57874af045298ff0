"""A larger model whose initial weights come from a smaller one of the same version.

Each place of the large model has a place of the small one as its donor, in order and spread evenly:
of n' places, number i takes from i n // n' of n. This holds for the D channels of the residual
stream, for heads (whole ones, so that channels keep their place in a head; RWKV-4: channels), for
the F hidden channels of the channel mix, and for layers. Then, for a tensor of any axes,

    value'[i, j] = value[donor(i), donor(j)] s_j        s_j = 1 for an axis that is not summed over

and an axis that is summed over shares its donor out: over the copies j of one donor the s_j are
positive and sum to 1. All activations keep their size; where all donors have equally many copies,
a wider model computes what the small one does. Shares are drawn at random around equal ones, or
copies would have equal gradients and stay copies for ever.

Layers: c copies of a layer stand one after the other, each with the outputs of its time mix and
channel mix divided by c: small steps in the same direction. Averages of neighbouring layers are not
used, since the inner channels of two layers have nothing to do with each other.

Vectors that spread over the channels of the time mix (decay, bonus, rates) are curves: the small
model's values are sorted, smoothed by the weights 1/4, 1/2, 1/4, stretched to the new length by
linear interpolation, and dealt out so that channels keep the order of their donors' values. The
large model so gets the small one's distribution of time scales without gaps, and copies of a
channel differ.

Low-rank pairs get further ranks, and a larger vocabulary further rows, with fresh initial values;
further ranks contribute nothing at first.

Source: stage 1 of RWKV-LM interpolates single tensors; its author's advice on curves. Sharing out:
Net2Net paper (2015), section 2.2. Stacked layers with smaller steps: this project's choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import config_from_shapes
from rwkv_train.models.table import seeded_generator

# Axes by key: D, A, F, V as above; R a rank, M the mixer's five ranks, 5 its five parts; "+" marks
# an axis that is summed over, "~" a curve. Axes of size 1 are skipped.
_AXES = {
    r"emb\.weight": "V D",
    r"head\.weight": "V D+",
    r"head_[qk]\.weight": "R D+",
    r"ln_out\.\w+|blocks\.\d+\.ln[012]\.\w+": "D",
    r".*\.att\.(receptance|key|value|gate)\.weight": "A D+",
    r".*\.att\.output\.weight": "D A+",
    r".*\.att\.ln_x\.\w+|.*\.att\.(k_k|k_a|r_k)": "A",
    r".*\.att\.(time_decay|time_first|time_faaaa|[wav]0)": "A~",
    r".*\.att\.(time_mix_\w|time_maa_\w|x_\w)|.*\.ffn\.(time_mix_\w|time_maa_\w|x_k)": "D",
    r".*\.att\.time_maa_w1": "D+ M",
    r".*\.att\.time_maa_w2": "5 R D",
    r".*\.att\.(time_decay_w1|[wavg]1)": "D+ R",
    r".*\.att\.(time_decay_w2|[wavg]2)": "R A",
    r".*\.ffn\.key\.weight": "F D+",
    r".*\.ffn\.receptance\.weight": "D D+",
    r".*\.ffn\.value\.weight": "D F+",
}
_OUTPUTS = re.compile(r".*\.(att\.output|ffn\.value)\.weight")
# Half the size of a copy's share may be moved to another copy.
_UNEVEN = 0.5


@torch.no_grad()
def enlarge(model: RWKV, donor: Mapping[str, Tensor], *, seed: int = 0) -> str:
    """Writes `donor`, resized, into `model`, which has its initial values; returns a line on it.

    donor: weights of a smaller model by checkpoint key, fp32. Raises ConfigError when the model is
    smaller than the donor in any size, CheckpointError when tensors are missing or unknown.
    """
    small = config_from_shapes({name: tuple(value.shape) for name, value in donor.items()})
    assert small.n_layer and small.vocab_size, "a checkpoint's shapes tell both"
    large = model.config
    for name in ("n_layer", "n_embd", "dim_att", "dim_ffn"):
        before, now = getattr(small, name), getattr(large, name)
        if now < before:
            raise ConfigError(
                f"--{name} {now} is less than the {before} of the model given by --load_model; "
                f"--train_stage 1 makes models larger only"
            )
    donor_layers = donors(small.n_layer, large.n_layer)
    copies, layer_of = torch.bincount(donor_layers).tolist(), donor_layers.tolist()
    used, kept = set(), 0
    for name, parameter in model.named_parameters():
        source, layer = _source(name, layer_of)
        if source not in donor:
            _require_optional(source, model)
            kept += 1
            continue
        used.add(source)
        # Not by the name alone, which has given the initial values their random numbers.
        generator = seeded_generator(seed, f"share of {name}")
        value = _resized(name, donor[source], parameter, large.head_size, generator)
        # The copies of a layer together take the step that the one layer took.
        if _OUTPUTS.fullmatch(name):
            value = value / copies[layer]
        parameter.copy_(value)
    unknown = sorted(set(donor) - used)
    if unknown:
        raise CheckpointError(
            f"the smaller model has {unknown[0]}, which a RWKV-{large.rwkv_version} has not "
            f"({len(unknown)} such tensors); trained states are not transferred"
        )
    rows = max(0, large.vocab_size - small.vocab_size)
    return (
        f"{small.n_layer} layers of width {small.n_embd} became {large.n_layer} of width "
        f"{large.n_embd}"
        + (f"; {rows} rows of the vocabulary are new" if rows else "")
        + (f"; {kept} tensors kept their initial values" if kept else "")
    )


def donors(small: int, large: int, size: int = 1) -> Tensor:
    """Returns the [large] places of `small` ones that give their values, in order, spread evenly.

    size: places come in groups of this size, which stay whole (channels of a head).
    """
    groups = torch.arange(large // size) * (small // size) // (large // size)
    return (groups[:, None] * size + torch.arange(size)).flatten()


def stretched_curve(values: Tensor, donor: Tensor) -> Tensor:
    """Returns `values` [n] sorted, smoothed and stretched to len(donor), in the donors' order."""
    ordered = values.sort().values
    inner = ordered[:-2] / 4 + ordered[1:-1] / 2 + ordered[2:] / 4
    smooth = torch.cat((ordered[:1], inner, ordered[-1:]))
    stretched = F.interpolate(
        smooth[None, None], size=len(donor), mode="linear", align_corners=True
    )[0, 0]
    result = torch.empty_like(stretched)
    # Stable, so that channels with equal values keep their order on every machine.
    result[values[donor].argsort(stable=True)] = stretched
    return result


def shares(donor: Tensor, generator: torch.Generator) -> Tensor:
    """Returns positive factors of the copies; those of one donor sum to 1."""
    raw = 1 + _UNEVEN * torch.empty(len(donor)).uniform_(-1, 1, generator=generator)
    totals = torch.zeros(int(donor.max()) + 1).index_add_(0, donor, raw)
    return raw / totals[donor]


def _resized(
    name: str, value: Tensor, parameter: Tensor, head_size: int, generator: torch.Generator
) -> Tensor:
    """Returns `value` in the shape of `parameter`, which has its initial value."""
    axes = next(axes for key, axes in _AXES.items() if re.fullmatch(key, name)).split()
    if value.shape == parameter.shape:
        return value
    if axes[0] in ("D", "A", "A~") and len(axes) == 1:
        small, large = value.flatten(), parameter.flatten()
        donor = donors(len(small), len(large), _group(axes[0], head_size))
        resized = stretched_curve(small, donor) if axes[0].endswith("~") else small[donor]
        return resized.reshape(parameter.shape)
    if "M" in axes:
        # Its columns are five blocks of R: further ranks belong to each block, not behind all five.
        parts = (torch.unflatten(value, 1, (5, -1)), torch.unflatten(parameter, 1, (5, -1)))
        return _resized_axes(name, *parts, ["D+", "5", "R"], head_size, generator).flatten(1)
    return _resized_axes(name, value, parameter, axes, head_size, generator)


def _resized_axes(
    name: str,
    value: Tensor,
    parameter: Tensor,
    axes: list[str],
    head_size: int,
    generator: torch.Generator,
) -> Tensor:
    for number, axis in enumerate(axes):
        small, large = value.shape[number], parameter.shape[number]
        if small == large:
            continue
        if axis in ("R", "V"):
            value = _with_more(name, value, parameter, number)
            continue
        donor = donors(small, large, _group(axis, head_size))
        value = value.index_select(number, donor)
        if axis.endswith("+"):
            shape = [-1 if n == number else 1 for n in range(value.dim())]
            # Summed over: the copies of one input must add up to what it contributed.
            value = value * shares(donor, generator).view(shape)
    return value


def _with_more(name: str, value: Tensor, parameter: Tensor, axis: int) -> Tensor:
    """Returns `value` with further ranks or rows along `axis`, from the initial values.

    A vocabulary that shrinks loses its last rows.
    """
    size, common = parameter.shape[axis], min(value.shape[axis], parameter.shape[axis])
    if common == size:
        if not name.endswith(("emb.weight", "head.weight")):
            raise ConfigError(
                f"{name} of the model given by --load_model has rank {value.shape[axis]}, more "
                f"than {size}; give the rank flags (--rank_decay …) at least its own"
            )
        return value.narrow(axis, 0, size)
    fresh = parameter.narrow(axis, common, size - common)
    if name.endswith(".g2"):
        # The gate's hidden channels are 1/2 at first, not 0.
        fresh = torch.zeros_like(fresh)
    for other in range(value.dim()):
        if other != axis and fresh.shape[other] != value.shape[other]:
            # That axis is stretched afterwards; the initial values have its size already.
            fresh = fresh.narrow(other, 0, value.shape[other])
    return torch.cat((value, fresh), axis)


def _group(axis: str, head_size: int) -> int:
    return head_size if axis.startswith("A") and head_size else 1


def _source(name: str, layer_of: list[int]) -> tuple[str, int]:
    """Returns the donor's key for the parameter `name`, and its layer (0 outside the blocks)."""
    if not name.startswith("blocks."):
        return name, 0
    _, layer, rest = name.split(".", 2)
    source = layer_of[int(layer)]
    # Only the first block has ln0.
    return f"blocks.{source}.{rest}", source


def _require_optional(source: str, model: RWKV) -> None:
    patterns = (re.escape(p).replace(r"\*", r"\d+") for p in model.optional_keys)
    if not any(re.fullmatch(pattern, source) for pattern in patterns):
        raise CheckpointError(f"the model given by --load_model lacks {source}; give a whole model")
