"""Bytes that follow from the number of parameters: weights, masters, gradients, moments, buckets.

Per strategy: of one process and DDP all is whole; ZeRO 1 divides moments and fp32 masters among the
processes, 2 the gradients too, 3 the weights as well.  On CPUs gradients of 16-bit weights are
added up in fp32 (`training.distributed.strategy`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.kept_activations import Learning, widths_of
from rwkv_train.planning.parameter_table import (
    ParameterKind,
    TensorShape,
    tensor_shapes,
    trained_state,
)

_FP32 = 4
_MILLION = 1_000_000
# DeepSpeed keeps weights that are needed again within so many, and so all of a smaller model.
_MOST_GATHERED = 1_000_000_000
_ZERO_STAGES = {
    "deepspeed_stage_1": 1,
    "deepspeed_stage_2": 2,
    "deepspeed_stage_2_offload": 2,
    "deepspeed_stage_3": 3,
    "deepspeed_stage_3_offload": 3,
}


@dataclass(frozen=True)
class Elements:
    """Numbers of parameters: all, those that learn, and of these parts the ones that learn.

    products: of a block, that autocast copies, and learnt_products, that learn.
    largest: tensor of a block that learns.
    matrices: that Muon takes.
    """

    total: int
    learnt: int
    head: int
    embedding: int
    block: int
    products: int
    learnt_products: int
    largest: int
    matrices: int


@dataclass(frozen=True)
class HeldParameters:
    """Bytes in one process.

    total: elements of the model.
    block_copies: of autocast, a block's.  narrow_gradients: a block's in autocast's dtype, which
    become fp32 together.
    head_gradient, block_gradients, largest_gradient: that the backward pass makes, the largest with
    what it is converted from, whole_gradients: all that it makes; all_gradients: that are there at
    its end.  gradient_share: of them, that this process keeps; None: room for all is there from the
    start.  step_gradients: in the optimizer step.
    buckets: while gradients are reduced.  gathered: buffers and other processes' weights that are
    there for the whole step.  copied: of weights and moments, as the process that saves them has
    them in the host's memory.
    """

    total: int
    weights: int
    block_copies: int
    narrow_gradients: int
    masters: int
    moments: int
    head_gradient: int
    block_gradients: int
    largest_gradient: int
    whole_gradients: int
    all_gradients: int
    gradient_share: float | None
    step_gradients: int
    buckets: int
    gathered: int
    copied: int

    def so_far(self, gradients: int) -> int:
        """Returns what this process holds of the gradients that were computed so far."""
        if self.gradient_share is None:
            return self.all_gradients
        return int(min(gradients * self.gradient_share, self.all_gradients))


def held_parameters(config: ResolvedConfig) -> HeldParameters:
    """Returns what a process holds for the model's parameters."""
    found = count_elements(config)
    width, _, product = widths_of(config)
    stage = _ZERO_STAGES.get(config.hardware.strategy, 0)
    sums = _bytes_of_sums(config, width, stage)
    whole = HeldParameters(
        total=found.total,
        weights=width * found.total + _frozen_values(config, found, width),
        block_copies=product * found.products if product != width else 0,
        narrow_gradients=product * found.learnt_products if product != width else 0,
        masters=_FP32 * found.learnt if width < _FP32 else 0,
        moments=moment_bytes(config, found),
        head_gradient=sums * found.head,
        block_gradients=sums * found.block,
        largest_gradient=found.largest * (sums + (product if product != sums else 0)),
        whole_gradients=width * found.learnt,
        all_gradients=sums * found.learnt,
        gradient_share=1.0,
        step_gradients=sums * found.learnt,
        buckets=0,
        gathered=0,
        copied=_copied(config, found),
    )
    if config.hardware.strategy == "ddp":
        return _in_buckets(config, whole)
    return whole if stage == 0 else _divided(config, found, whole, stage)


def _in_buckets(config: ResolvedConfig, whole: HeldParameters) -> HeldParameters:
    """Returns what a process of DDP holds: buckets, in which the gradients lie.

    The buckets are there for the whole run. Micro batches before a step's last one add up outside.
    """
    apart = whole.all_gradients if config.train.accumulate_grad_batches > 1 else 0
    return replace(whole, all_gradients=apart, step_gradients=0, gathered=whole.whole_gradients)


def saves_in_parts(config: ResolvedConfig) -> bool:
    """Tells whether every one of several processes copies and writes its part of a state."""
    state_format = config.safety.state_format
    return state_format == "folder" or (state_format == "auto" and config.train.train_type == "all")


def copied_bytes(config: ResolvedConfig, found: Elements, sharers: int) -> int:
    """Returns the bytes of the copies of a save: fp32 values of what learns, and its moments.

    sharers: processes, or machines, of which the first copies all of them, or every one its part.
    """
    whole = _FP32 * found.learnt + moment_bytes(config, found)
    return whole // sharers if saves_in_parts(config) else whole


def _copied(config: ResolvedConfig, found: Elements) -> int:
    """Returns the bytes of the copies of a save that lie where the process computes."""
    hardware = config.hardware
    if hardware.accelerator == "gpu":
        return 0
    return copied_bytes(config, found, hardware.devices * hardware.num_nodes)


def _bytes_of_sums(config: ResolvedConfig, width: int, stage: int) -> int:
    """Returns the bytes of a number of a gradient, in the sum that the optimizer reads."""
    if stage:
        return _FP32 if config.hardware.accelerator == "cpu" else width
    return _FP32 if config.train.accumulate_grad_batches > 1 else width


def _frozen_values(config: ResolvedConfig, found: Elements, width: int) -> int:
    """Returns the bytes of the fp32 values of 16-bit weights that do not learn.

    They are saved as they were; on a GPU they lie in the host's memory.
    """
    kept = config.hardware.accelerator == "cpu" and width < _FP32
    return _FP32 * (found.total - found.learnt) if kept else 0


def _divided(
    config: ResolvedConfig, found: Elements, whole: HeldParameters, stage: int
) -> HeldParameters:
    """Returns what one of ZeRO's processes holds."""
    hardware = config.hardware
    width = widths_of(config).weight
    processes = hardware.devices * hardware.num_nodes
    offloads = hardware.accelerator == "gpu" and "offload" in hardware.strategy
    masters = 0 if offloads else _FP32 * found.learnt // processes
    share = whole.all_gradients // processes
    # Stage 2 adds up what it has received, the others what they send.
    number = width if stage == 2 else _bytes_of_sums(config, width, stage)
    bucket = _bucket_elements(config, found) * number
    return replace(
        whole,
        weights=whole.weights // (processes if stage == 3 else 1),
        masters=masters,
        moments=0 if offloads else whole.moments // processes,
        all_gradients=whole.all_gradients if stage == 1 else share,
        gradient_share=(1.0, 1 / processes, None)[stage - 1],
        # The optimizer reads its share in fp32, as one tensor, while the others are still there.
        step_gradients=(whole.all_gradients if stage == 1 else share) + masters,
        buckets=bucket if stage < 3 else 0,
        gathered=bucket + width * min(found.total, _MOST_GATHERED) if stage == 3 else 0,
    )


def _bucket_elements(config: ResolvedConfig, found: Elements) -> int:
    """Returns the elements of DeepSpeed's buckets of gradients that take memory.

    A CPU gives memory to what is written alone; on a GPU there are two, of full size.
    """
    asked = config.hardware.ds_bucket_mb * _MILLION
    return 2 * asked if config.hardware.accelerator == "gpu" else min(asked, found.learnt)


def count_elements(config: ResolvedConfig) -> Elements:
    """Returns how many parameters there are and learn, adapters and initial states included."""
    model, train, learning = config.model, config.train, Learning(config)
    shapes = tensor_shapes(model)
    total = sum(t.copies * t.elements for t in shapes)
    in_block = [t for t in shapes if t.key.startswith("blocks.*")]
    learnt = [t for t in shapes if _learns(t, learning)]
    block = [t for t in in_block if _learns(t, learning)]
    own = 0
    largest = max((t.elements for t in block), default=0)
    if train.train_type == "states":
        own = largest = trained_state(model)
    for tensor in learning.adapted.values():
        own += _adapter(config, tensor)
        total += model.n_layer * (_adapter(config, tensor, frozen=True))
    products = [t for t in in_block if t.is_product]
    adapters = own * (train.train_type == "lora")
    return Elements(
        total=total + model.n_layer * own,
        learnt=sum(t.copies * t.elements for t in learnt) + model.n_layer * own,
        head=sum(t.elements for t in learnt if t.key == "head.weight"),
        embedding=sum(t.elements for t in learnt if t.kind is ParameterKind.EMBEDDING),
        block=sum(t.elements for t in block) + own,
        products=sum(t.elements for t in products) + adapters,
        learnt_products=sum(t.elements for t in products if _learns(t, learning)) + adapters,
        largest=largest,
        matrices=sum(t.copies * t.elements for t in learnt if t.is_adaptable),
    )


def _learns(tensor: TensorShape, learning: Learning) -> bool:
    if tensor.kind is ParameterKind.EMBEDDING:
        return learning.fully("emb")
    if tensor.kind is ParameterKind.HEAD:
        return learning.fully("head")
    if tensor.is_adaptable:
        return learning.everything
    norm = ".ln" in tensor.key or tensor.key.startswith("ln_")
    return learning.fully("ln" if norm else "time")


def _adapter(config: ResolvedConfig, tensor: TensorShape, *, frozen: bool = False) -> int:
    """Returns the elements of the adapter next to a matrix that learn, or that are frozen."""
    adapter = config.adapter
    pair = adapter.lora_r * sum(tensor.shape)
    if frozen:
        return pair if adapter.lora_init == "pissa" else 0
    return pair + (tensor.shape[0] if adapter.lora_dora else 0)


def moment_bytes(config: ResolvedConfig, found: Elements) -> int:
    """Returns the bytes of the optimizer's moments of all that learns."""
    if config.optim.optimizer == "adam8bit":
        # A byte each, and an fp32 scale for every 256.
        return 2 * found.learnt + 2 * _FP32 * found.learnt // 256
    if config.optim.optimizer == "muon":
        # One momentum of a matrix.
        return _FP32 * (2 * found.learnt - found.matrices)
    return 2 * _FP32 * found.learnt
