"""The memory of a run, worked out before it starts: what one process holds, part by part.

A step has a few moments at which most is held: the end of the forward pass with the head's slice of
logits, the head's gradients, the backward pass of each block, the optimizer step.  Each is added up
from what the model, the operators and the strategy are known to allocate; the plan is the largest.
No constant is fitted, except `slack`, which stands for what no count of tensors shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from rwkv_train.config.machine_schema import SafetyConfig
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import TrainConfig
from rwkv_train.planning.head_memory import HeadBytes, head_bytes
from rwkv_train.planning.held_parameters import HeldParameters, held_parameters
from rwkv_train.planning.kept_activations import BlockBytes, block_bytes, widths_of
from rwkv_train.planning.pass_sizes import PassSizes, pass_sizes

_FP32 = 4
# Bytes of Python and libraries, on a GPU of the context with its kernels; and which part of what is
# allocated lies idle between blocks. Measured on a CPU, usual figures on a GPU.
_SLACK = {"cpu": (450_000_000, 8), "gpu": (700_000_000, 20)}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that one process (device) holds at the worst moment of a step, by component.

    weights: with the 16-bit copies of autocast.  head: logits, features and their gradients.
    states: those kept between chunks, and carried from window to window.
    buffers: buckets of gradients and gathered weights of DDP and ZeRO; on a CPU the copies that
    are being written while training goes on.
    slack: allocator, libraries, on a GPU the CUDA context.  batch: tokens and targets.
    """

    weights: int = 0
    master_weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    head: int = 0
    states: int = 0
    buffers: int = 0
    slack: int = 0
    batch: int = 0

    @property
    def total(self) -> int:
        """The sum of all components."""
        return sum(self.components().values())

    @property
    def allocated(self) -> int:
        """The sum of what torch allocates: all but the slack."""
        return self.total - self.slack

    def components(self) -> dict[str, int]:
        """Returns the components by name, in the order of the fields."""
        return {entry.name: int(getattr(self, entry.name)) for entry in fields(self)}


def memory_plan(config: ResolvedConfig) -> MemoryPlan:
    """Returns the worst moment of a step in each process of a run.

    At stage 1, which only writes initial weights, these are all.  Raises ConfigError for a version
    whose tensors are not listed.
    """
    if config.train.train_stage == 1:
        return MemoryPlan(weights=_FP32 * held_parameters(config).total)
    worst = max(_Step(config).moments(), key=lambda plan: plan.total)
    fixed, share = _SLACK[config.hardware.accelerator]
    return replace(worst, slack=fixed + worst.total // share)


def saves_beside_steps(safety: SafetyConfig, train: TrainConfig) -> bool:
    """Tells whether a run saves before its end, while it trains on."""
    saves = safety.save_every_minutes > 0 or safety.save_every_steps is not None
    return safety.save_in_background and (saves or train.epoch_save > 0)


class _Step:
    """One optimizer step of one process, moment by moment."""

    def __init__(self, config: ResolvedConfig) -> None:
        self._layers = config.model.n_layer
        self._grad_cp = config.train.grad_cp
        self._held: HeldParameters = held_parameters(config)
        self._sizes: PassSizes = pass_sizes(config)
        self._head: HeadBytes = head_bytes(config, self._sizes.tokens)
        first = block_bytes(config, is_first=True)
        others = block_bytes(config, is_first=False)
        self._blocks: list[BlockBytes] = [first, *[others] * (self._layers - 1)]
        widths, D = widths_of(config), config.model.n_embd
        gated = config.model.rwkv_version != "7"
        # The last norm keeps its stream, and a gated branch with its gate.
        self._last = D * (widths.stream + (2 * widths.product if gated else 0))
        # The first layer's value, which RWKV-7 hands from block to block.
        self._carry = 0 if gated else D * widths.product
        held = self._held
        # Copies of what is saved, and those of them that steps go on beside.
        self._copied = held.copied
        self._written = held.copied if saves_beside_steps(config.safety, config.train) else 0
        self._base = MemoryPlan(
            weights=held.weights,
            master_weights=held.masters,
            optimizer=held.moments,
            states=self._sizes.states,
            batch=self._sizes.batch,
        )

    def moments(self) -> Iterator[MemoryPlan]:
        """Yields the moments that may be the worst."""
        held, head = self._held, self._head
        # What earlier passes of the same step have added up.
        sums = held.all_gradients if self._sizes.micro_batches > 1 else 0
        # A parameter's gradients by the chunks of a sample meet before anybody takes them up.
        pending = held.whole_gradients if self._sizes.chunks > 1 else 0
        before = held.so_far(sums) + pending
        kept, copies = self._kept(self._layers), self._copies(self._layers)
        yield self._at(before, kept, copies, head=head.forward)
        yield self._at(before, kept, copies, head=head.backward, buffers=held.buckets)
        for layer in reversed(range(self._layers)):
            yield self._in_block(layer, sums, pending)
            if held.narrow_gradients:
                yield self._behind_block(layer, sums, pending)
        yield self._at(held.all_gradients, 0, 0, buffers=held.buckets)
        yield self._at(held.step_gradients, 0, 0)
        yield self._at(0, 0, 0, buffers=self._copied - self._written)

    def _in_block(self, layer: int, sums: int, pending: int) -> MemoryPlan:
        """Returns the backward pass of a block; sums, pending: gradients of passes before."""
        held, block = self._held, self._blocks[layer]
        gradients = self._gradients_before(layer, sums, pending) + held.largest_gradient
        activations = self._kept(layer) + self._tokens(block.kept + block.working)
        if self._grad_cp:
            # Its inputs stay until it is done.
            activations += self._tokens(block.inputs)
        # Of blocks that are recomputed only this one's.
        copies = held.block_copies if self._grad_cp else self._copies(layer + 1)
        return self._at(gradients, activations, copies, buffers=held.buckets)

    def _behind_block(self, layer: int, sums: int, pending: int) -> MemoryPlan:
        """Returns the end of that pass under autocast, where all gradients of it are there."""
        held, block = self._held, self._blocks[layer]
        gradients = self._gradients_before(layer, sums, pending)
        gradients += held.block_gradients + held.narrow_gradients
        # The gradients of its inputs are as large as they are.
        activations = self._kept(layer) + self._tokens(block.inputs)
        return self._at(gradients, activations, self._copies(layer), buffers=held.buckets)

    def _gradients_before(self, layer: int, sums: int, pending: int) -> int:
        """Returns the gradients that are there when a block's backward pass begins."""
        held = self._held
        if sums or pending:
            # What is added is there besides the sum.
            return held.so_far(sums) + pending + self._head.gradient
        behind = self._layers - 1 - layer
        return held.so_far(held.head_gradient + behind * held.block_gradients)

    def _at(
        self, gradients: float, activations: float, copies: int, head: float = 0, buffers: int = 0
    ) -> MemoryPlan:
        base = self._base
        return replace(
            base,
            weights=base.weights + copies,
            gradients=int(gradients),
            activations=int(activations),
            head=int(head),
            buffers=self._held.gathered + self._written + buffers,
        )

    def _tokens(self, bytes_each: float) -> float:
        return self._sizes.tokens * bytes_each

    def _kept(self, layers: int) -> float:
        """Returns what so many blocks from the first on have kept, and the last norm's stream."""
        blocks = self._blocks[:layers]
        each = sum(block.inputs if self._grad_cp else block.kept for block in blocks)
        if layers == self._layers:
            each += self._last
        if self._grad_cp and layers:
            each += self._carry
        return self._tokens(each)

    def _copies(self, layers: int) -> int:
        """Returns autocast's copies of the weights of so many blocks, between the passes."""
        return 0 if self._grad_cp else layers * self._held.block_copies
