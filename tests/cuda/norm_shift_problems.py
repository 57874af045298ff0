"""Calls of the norm with shift to try the CUDA kernels on, and every result of them."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.norm_shift import EPS
from tests.cuda.host_kernels import (
    DTYPE_CODES,
    Guarded,
    HostKernels,
    Interface,
    surrounded,
    tensors_of,
)
from tests.ops.norm_shift_cases import MOVED, NormCase, kind_of

MOST_SHIFTED, SUM_TOKENS = 8, 64

_INPUTS = ("weight", "bias", "mixes", "last", "reset", "moves", "out", "gate")
_FORWARD = ("x", "known", "stream", "statistics", "h_last")
_Y = tuple(f"y[{i}]" for i in range(MOST_SHIFTED))
_GY = tuple(f"g{name}" for name in _Y)
_GIVEN = ("stream", "statistics", "gstream", "gh_last", "gnormal")
_WRITTEN = ("gx", "gout", "ggate", "gnormal_out", "gmoves", "sums", "glast", "total")
NORM_INTERFACE = Interface(
    "norm_shift",
    "NormShiftForward",
    "NormShiftBackward",
    ("batch", "time", "width", "count", "dtype", "y_dtype", "eps"),
    (*_INPUTS, *_FORWARD, *_Y),
    (*_INPUTS, *_GIVEN, *_GY, *_WRITTEN),
    with_options=False,
)


def norm_kernel_results(
    kernels: HostKernels, case: NormCase, dtype: torch.dtype, to: torch.dtype
) -> dict[str, Tensor]:
    """Runs the kernels on a rounded case, a second time for moves; every result by name.

    Around every input lie NaN, around every output guard bytes.
    """
    return _Run(kernels, case, dtype, to).results()


class _Run:
    def __init__(
        self, kernels: HostKernels, case: NormCase, dtype: torch.dtype, to: torch.dtype
    ) -> None:
        self.kernels, self.case, self.dtype, self.to = kernels, case, dtype, to
        self.given = {
            name: surrounded(x.to(kind_of(name, dtype, to))) for name, x in case.inputs.items()
        }
        self.gradients = {
            name: None if g is None else surrounded(g.to(kind_of(name, dtype, to)))
            for name, g in case.gradients.items()
        }
        self.shape = tuple(case.inputs["x"].shape)
        self.found: dict[str, Guarded] = {}
        self.moved: dict[str, Tensor] = {}
        self.glast_again: Tensor | None = None

    def results(self) -> dict[str, Tensor]:
        count = len(self.case.inputs["mixes"]) if "mixes" in self.given else 1
        batch, time, width = self.shape
        self.found = {
            "statistics": Guarded((batch, time, 2), torch.float32),
            "h_last": Guarded((batch, width), torch.float32),
        }
        if "out" in self.given:
            self.found["stream"] = Guarded(self.shape, self.dtype)
        y = self._forward(self._inputs("mixes"), count, "y", dict(self.found), x=self.given["x"])
        stream = self.found["stream"].tensor if "stream" in self.found else self.given["x"]
        statistics = self.found["statistics"].tensor
        gnormal = None
        if "moves" in self.given:
            gnormal = self._mix_again(stream, statistics)
        gradients = self._gradients(count if "mixes" in self.given else 0)
        self._backward(
            self._inputs("mixes"),
            count,
            "y",
            gradients,
            stream=stream,
            statistics=statistics,
            gstream=self.gradients["stream"],
            gh_last=self.gradients["h_last"],
            gnormal=gnormal,
        )
        totals = gradients["total"].tensor
        names = ("gx", "gout", "ggate", "glast")
        found = {name: gradients[name].tensor for name in names if name in gradients}
        if "out" in self.given and "gout" not in found:
            found["gout"] = found["gx"]
        found |= {"gweight": totals[-2], "gbias": totals[-1]}
        if "mixes" in self.given:
            found["gmixes"] = totals[:-2]
        if "moves" in self.given:
            found |= self.moved
            if "last" in self.given:
                found["glast"] = found["glast"] + self.glast_again
        for name, buffer in {**self.found, **gradients}.items():
            buffer.check(name)
        return found | {"stream": stream, "h_last": self.found["h_last"].tensor} | y

    def _mix_again(self, stream: Tensor, statistics: Tensor) -> Tensor:
        """Runs the second pair of passes; returns what the normalised tokens get from it."""
        batch, _, width = self.shape
        inputs = self._inputs("again") | {"moves": self.given["moves"], "out": None, "gate": None}
        z = self._forward(inputs, MOVED, "z", {}, x=stream, known=statistics)
        blocks = self._blocks()
        gradients = {
            "gnormal_out": Guarded(self.shape, self.to),
            "gmoves": Guarded((MOVED, *self.shape), self.to),
            "sums": Guarded((blocks, MOVED, width), torch.float32),
            "total": Guarded((MOVED, width), torch.float32),
        }
        if "last" in self.given:
            gradients["glast"] = Guarded((batch, width), torch.float32)
        self._backward(inputs, MOVED, "z", gradients, stream=stream, statistics=statistics)
        self.moved = z | {"gmoves": gradients["gmoves"].tensor, "gagain": gradients["total"].tensor}
        if "last" in self.given:
            self.glast_again = gradients["glast"].tensor
        for name, buffer in gradients.items():
            buffer.check(name)
        return gradients["gnormal_out"].tensor

    def _inputs(self, mixes: str) -> dict[str, Tensor | None]:
        inputs = {name: self.given.get(name) for name in _INPUTS}
        return inputs | {"mixes": self.given.get(mixes), "reset": self.case.reset, "moves": None}

    def _blocks(self) -> int:
        return self.shape[0] * -(-self.shape[1] // SUM_TOKENS)

    def _sizes(self, count: int) -> tuple[int, ...]:
        return (*self.shape, count, DTYPE_CODES[self.dtype], DTYPE_CODES[self.to], EPS)

    def _gradients(self, mixed: int) -> dict[str, Guarded]:
        batch, _, width = self.shape
        gradients = {
            "gx": Guarded(self.shape, self.dtype),
            "sums": Guarded((self._blocks(), mixed + 2, width), torch.float32),
            "total": Guarded((mixed + 2, width), torch.float32),
        }
        if "gate" in self.given:
            gradients["ggate"] = Guarded(self.shape, self.to)
        if "gate" in self.given or ("out" in self.given and self.to != self.dtype):
            gradients["gout"] = Guarded(self.shape, self.to)
        if "last" in self.given:
            gradients["glast"] = Guarded((batch, width), torch.float32)
        return gradients

    def _forward(
        self,
        inputs: dict[str, Tensor | None],
        count: int,
        letter: str,
        written: dict[str, Guarded],
        **read: Tensor,
    ) -> dict[str, Tensor]:
        y = [Guarded(self.shape, self.to) for _ in range(count)]
        tensors = dict.fromkeys((*_FORWARD, *_Y)) | inputs | read | tensors_of(written)
        tensors |= {f"y[{i}]": buffer.tensor for i, buffer in enumerate(y)}
        self.kernels.forward(self._sizes(count), tensors)
        for buffer in y:
            buffer.check(letter)
        return {f"{letter}{i}": buffer.tensor for i, buffer in enumerate(y)}

    def _backward(
        self,
        inputs: dict[str, Tensor | None],
        count: int,
        letter: str,
        written: dict[str, Guarded],
        **read: Tensor | None,
    ) -> None:
        gy = {f"gy[{i}]": self.gradients.get(f"{letter}{i}") for i in range(count)}
        tensors = dict.fromkeys((*_GIVEN, *_GY, *_WRITTEN)) | inputs | read | gy
        self.kernels.backward(self._sizes(count), tensors | tensors_of(written))
