"""Seconds of a step that wait for links: gradients and weights by strategy, states by context."""

from __future__ import annotations

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import window_len
from rwkv_train.planning.cards import Card
from rwkv_train.planning.context_traffic import ContextShape, context_links, context_seconds
from rwkv_train.planning.link_traffic import ADAPTER_BANDWIDTH, Network
from rwkv_train.planning.parameter_table import parameter_table

# Bytes of DDP's buckets of gradients; elements that ZeRO 3 gathers ahead at a time.
_DDP_BUCKET, _GATHERED = 25 * 2**20, 50_000_000


def network_of(config: ResolvedConfig, card: Card) -> Network:
    """Returns the links between the cards of a run."""
    hardware = config.hardware
    node = card.adapters or ADAPTER_BANDWIDTH * hardware.devices
    return Network(card.link, node, hardware.devices, hardware.num_nodes)


def learnt_parameters(config: ResolvedConfig) -> int:
    """Returns the parameters that learn; the few of adapters and states count as none."""
    return parameter_table(config.model).total if config.train.train_type == "all" else 0


def strategy_wait(
    config: ResolvedConfig, network: Network, passes_seconds: float, again: int
) -> float:
    """Returns the seconds that are waited for gradients and weights.

    Gradients travel behind the backward pass, two thirds of all passes; what ZeRO 3 gathers behind
    all of them.  passes_seconds: of all passes of a step; again: forward passes that are repeated.
    """
    if network.ranks == 1:
        return 0.0
    strategy, passes = config.hardware.strategy, config.train.accumulate_grad_batches
    learnt = learnt_parameters(config)
    width = 2 if config.hardware.precision in ("bf16", "fp16") else 4
    bucket = config.hardware.ds_bucket_mb * 1e6
    if strategy == "ddp":
        # Under autocast gradients are fp32; they are added up over the micro batches first.
        sent = network.all_reduce(4 * learnt, 4 * learnt / _DDP_BUCKET)
        return max(0.0, sent - passes_seconds * 2 / 3 / passes)
    sent = network.gather(width * learnt, learnt / bucket)
    if not strategy.startswith("deepspeed_stage_3"):
        # Stage 1 adds micro batches up before it sends, stage 2 sends each.
        times = 1 if strategy == "deepspeed_stage_1" else passes
        return max(0.0, times * (sent - passes_seconds * 2 / 3 / passes)) + sent
    total = parameter_table(config.model).total
    gathered = (2 + again) * network.gather(width * total, total / _GATHERED)
    return max(0.0, passes * (gathered + sent) - passes_seconds)


def context_wait(config: ResolvedConfig, network: Network) -> float:
    """Returns the seconds of a step in which ranks of a sample wait for one another's states."""
    ranks, train, model = config.hardware.context_parallel, config.train, config.model
    if ranks == 1:
        return 0.0
    window = window_len(config)
    pieces = 1 if train.chunk_len is None else -(-window // (ranks * train.chunk_len))
    shape = ContextShape(model.rwkv_version, train.micro_bsz, model.dim_att, model.head_size)
    layer = context_seconds(shape, context_links(network, ranks), ranks)
    return train.accumulate_grad_batches * model.n_layer * pieces * layer
