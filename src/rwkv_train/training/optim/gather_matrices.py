"""Whole matrices out of the flat partitions into which DeepSpeed's ZeRO cuts them.

ZeRO 1 and 2 lay the parameters of a group end to end and give every rank an equal share of the
whole; ZeRO 3 shards every parameter equally and lays a rank's shards end to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class MatrixShard(NamedTuple):
    """A whole matrix [m, n], and which of its entries are this rank's.

    within_flat: their place in the rank's flat partition; within_matrix: in the flattened matrix.
    """

    matrix: Tensor
    within_flat: slice
    within_matrix: slice


class ZeroMatrices:
    """Gathers the matrices of one partition at a time.

    zero: DeepSpeed's ZeRO optimizer, of stage 1, 2 or 3.
    """

    def __init__(self, zero: Any) -> None:
        self._zero = zero
        self._by_parameter = hasattr(zero, "fp32_partitioned_groups_flat")

    def gather(self, flat: Tensor, values: Tensor) -> Iterator[MatrixShard]:
        """Yields the matrices of which the fp32 partition `flat` has entries, filled with `values`.

        values: this rank's, as many as `flat` has. Collective: all ranks take part, though each
        gets its own matrices only.
        """
        if self._by_parameter:
            return self._zero3(flat, values)
        return self._zero12(flat, values)

    def _zero12(self, flat: Tensor, values: Tensor) -> Iterator[MatrixShard]:
        zero = self._zero
        index = _position(zero.single_partition_of_fp32_groups, flat)
        whole, rank = _all_ranks(values, zero.real_dp_process_group[index])
        # A matrix may lie across the border of two ranks' partitions: both compute its update and
        # each keeps its entries, which costs less than to send them.
        whole = whole.flatten()
        begin, end = rank * values.numel(), (rank + 1) * values.numel()
        parameters = zero.round_robin_bit16_groups[index]
        for parameter, offset in zip(parameters, zero.round_robin_bit16_offsets[index]):
            size = parameter.numel()
            first, last = max(offset, begin), min(offset + size, end)
            if first < last:
                matrix = whole[offset : offset + size].view(parameter.shape)
                yield MatrixShard(
                    matrix, slice(first - begin, last - begin), slice(first - offset, last - offset)
                )

    def _zero3(self, flat: Tensor, values: Tensor) -> Iterator[MatrixShard]:
        zero = self._zero
        index = _position(zero.fp32_partitioned_groups_flat, flat)
        whole, rank = _all_ranks(values, zero.dp_process_group)
        offset = 0
        for parameter in zero.fp16_groups[index]:
            # The last shard is padded, so that all are equal: hence the size, and the two minima.
            piece, size = parameter.partition_numel(), parameter.ds_numel
            matrix = whole[:, offset : offset + piece].flatten()[:size].view(parameter.ds_shape)
            first, last = min(rank * piece, size), min((rank + 1) * piece, size)
            yield MatrixShard(matrix, slice(offset, offset + last - first), slice(first, last))
            offset += piece


def _position(flats: list[Tensor], flat: Tensor) -> int:
    return next(index for index, candidate in enumerate(flats) if candidate is flat)


def _all_ranks(values: Tensor, group: Any) -> tuple[Tensor, int]:
    """Returns [ranks, n] of every rank's [n], and this rank's row. Collective."""
    ranks = torch.distributed.get_world_size(group)
    whole = values.new_empty(ranks, values.numel())
    # as bytes: not every backend knows bf16
    torch.distributed.all_gather_into_tensor(
        whole.view(torch.uint8).flatten(), values.contiguous().view(torch.uint8), group=group
    )
    return whole, torch.distributed.get_rank(group)
