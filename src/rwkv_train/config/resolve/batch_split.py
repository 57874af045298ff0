"""Splits the batch of a step over the processes that there are: micro batches, accumulated.

A run that is started again with other processes, because a machine was lost or has come back, keeps
its batches, and with them its schedule and the order of its samples.
"""

from __future__ import annotations

import dataclasses

from rwkv_train.config.discovered import Discovered
from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.config.run_length import readers, step_shape
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import ConfigError


def resolve_batch(
    train: TrainConfig,
    ctx_len: int,
    hardware: ResolvedHardware,
    discovered: Discovered,
    lines: list[str],
) -> TrainConfig:
    """Returns the train section with micro batch and accumulation for --global_batch_size.

    Without the flag the batch of the state is kept, where a launcher may have changed the number of
    processes. Raises ConfigError for a batch that these processes cannot share.
    """
    given, sharing = step_shape(train, ctx_len, hardware).samples, hardware.context_parallel
    each = readers(hardware)
    size, is_kept = train.global_batch_size, False
    if size is None:
        size, is_kept = _kept_size(hardware, discovered), True
    # As given once more, such as on the machines of the first start: the flags count again.
    if size is None or (is_kept and size == given):
        return train
    if size % each:
        raise ConfigError(_refusal(size, each, sharing, is_kept))
    if not is_kept and train.accumulate_grad_batches != 1 and size != given:
        raise ConfigError(
            f"--global_batch_size {size} contradicts --micro_bsz {train.micro_bsz}"
            f" --accumulate_grad_batches {train.accumulate_grad_batches}, with which"
            f" {_named(each, sharing)} read {given} samples a step; leave"
            " --accumulate_grad_batches out"
        )
    share = size // each
    micro = _largest_part(share, train.micro_bsz)
    lines.append(
        f"global_batch_size {size}: {each if sharing == 1 else _named(each, sharing)}"
        f" x micro_bsz {micro} x {share // micro} accumulated"
        + (", the batch of the state that is resumed, kept for other processes" * is_kept)
    )
    return dataclasses.replace(
        train, global_batch_size=size, micro_bsz=micro, accumulate_grad_batches=share // micro
    )


def _kept_size(hardware: ResolvedHardware, discovered: Discovered) -> int | None:
    """Returns the samples a step of the state's run, if they are to be kept."""
    state = discovered.start.state
    if state is None or not discovered.keeps_batch:
        return None
    before = state.config
    devices, nodes = before.get("devices"), before.get("num_nodes")
    same = (devices, nodes) == (hardware.devices, hardware.num_nodes)
    # One that was kept once stays kept: the flags are those of the first start.
    return None if same and before.get("global_batch_size") is None else state.batch_samples


def _refusal(size: int, each: int, sharing: int, is_kept: bool) -> str:
    """Returns why `each` readers cannot share `size` samples; sharing: processes of a reader."""
    counts = [count for count in range(1, size + 1) if size % count == 0]
    near = [count for count in counts if count < each][-2:]
    near += [count for count in counts if count > each][:2]
    processes = " or ".join(str(count * sharing) for count in near)
    what = (
        f"the batch of {size} samples of the run that is resumed"
        if is_kept
        else f"--global_batch_size {size}"
    )
    others = size // each * each, -(-size // each) * each
    sizes = " or ".join(str(other) for other in others if other)
    return (
        f"{what} cannot be shared by {_named(each, sharing)}; start {processes}"
        f"{' of them' if sharing == 1 else ' processes'}, or give --global_batch_size {sizes}"
    )


def _named(each: int, sharing: int) -> str:
    """Returns the readers of samples in words: processes, or groups that share a sample."""
    several = "" if each == 1 else "s"
    if sharing > 1:
        return f"{each} group{several} of {sharing} processes"
    return f"{each} process{'es' if several else ''}"


def _largest_part(share: int, most: int) -> int:
    """Returns the largest divisor of `share` up to `most`."""
    return next(size for size in range(min(share, most), 0, -1) if share % size == 0)
