"""Reading sizes from the shapes of a checkpoint, used by every version's `sizes_from_shapes`."""

from __future__ import annotations

from collections.abc import Mapping

from rwkv_train.errors import ConfigError

Shapes = Mapping[str, tuple[int, ...]]


def matrix(shapes: Shapes, key: str) -> tuple[int, int]:
    """Returns rows and columns of the tensor `key`; raises ConfigError when it is no matrix."""
    shape = tensor_shape(shapes, key)
    if len(shape) != 2:
        raise ConfigError(f"the checkpoint's {key} has shape {list(shape)}, expected a matrix")
    return shape[0], shape[1]


def tensor_shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    """Returns the shape of the tensor `key`; raises ConfigError when it is missing."""
    if key not in shapes:
        raise ConfigError(f"the checkpoint has no tensor {key}, so its sizes cannot be read")
    return tuple(shapes[key])
