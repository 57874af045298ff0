"""A function of tensors as the list of operators that it calls, without the Python around them.

A network's forward pass for one token calls some hundred small operators, and finding out which
takes longer than many of them run. Here a function is run once and its operators are written down.
Those that depend on parameters alone are taken out and done once; products with a matrix become
`ops.matvec`. What is left is called one operator after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from rwkv_train.ops.matvec import is_served_natively, matvec

# Of parameters and arguments, which are all tensors.
Recordable = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]


class RecordedOperators:
    """The operators of a function for arguments of one shape, on a CPU and without gradients.

    One recording serves all sets of parameters of the same shapes: see `bound_to`.
    """

    def __init__(
        self, function: Recordable, parameters: Sequence[Tensor], arguments: Sequence[Tensor]
    ) -> None:
        """Calls the function once.

        The function must not look at the values of tensors, nor change any in place.
        """
        # Takes a second to import, which only those who decode should wait for.
        from torch.fx.experimental.proxy_tensor import make_fx

        # One tensor in two places would be one in all later calls.
        own = [argument.clone() for argument in arguments]
        with torch.no_grad():
            traced = make_fx(function, decomposition_table=_products())(list(parameters), own)
        graph = traced.graph
        _drop_views(graph)
        graph.eliminate_dead_code()
        placeholders = graph.find_nodes(op="placeholder")
        self._parameters = placeholders[: len(parameters)]
        self._constant = _depending_on(self._parameters, graph)
        self._kept, self._run = _without(self._constant, placeholders[len(parameters) :], graph)

    def bound_to(
        self, parameters: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], Sequence[Tensor | None]]:
        """Returns the function of the arguments alone; its parameters must not change afterwards.

        It is to be called under `torch.no_grad`.
        """
        values: dict[fx.Node, Any] = dict(zip(self._parameters, parameters))
        with torch.no_grad():
            for node in self._constant:
                if node not in values:
                    given = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = node.target(*given[0], **given[1])  # type: ignore[operator]
        kept, run = [values[node] for node in self._kept], self._run
        return lambda arguments: run(*kept, *arguments)


def _depending_on(parameters: Sequence[fx.Node], graph: fx.Graph) -> dict[fx.Node, None]:
    """Returns the parameters and the nodes that read nothing else, in their order."""
    constant = dict.fromkeys(parameters)
    for node in graph.nodes:
        read = node.all_input_nodes
        if node.op == "call_function" and read and all(other in constant for other in read):
            constant[node] = None
    return constant


def _without(
    constant: dict[fx.Node, None], arguments: Sequence[fx.Node], graph: fx.Graph
) -> tuple[list[fx.Node], Callable[..., Any]]:
    """Returns the constant nodes that others read, and the rest as a function of their values.

    It takes these values, then the arguments.
    """
    rest = [n for n in graph.nodes if n not in constant and n.op != "placeholder"]
    kept = list(dict.fromkeys(m for n in rest for m in n.all_input_nodes if m in constant))
    shorter = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {
        node: shorter.placeholder(f"given_{n}") for n, node in enumerate([*kept, *arguments])
    }
    for node in rest:
        copies[node] = shorter.node_copy(node, copies.__getitem__)
    run: Callable[..., Any] = fx.GraphModule({}, shorter).forward
    return kept, run


def _drop_views(graph: fx.Graph) -> None:
    """Lets operators read a tensor itself where they read a view that changes nothing for them.

    A view of one token costs as much as its arithmetic.
    """
    for node in graph.nodes:
        # By name: it does not exist where it could not be built.
        if str(node.target) == "rwkv.matvec_forward.default":
            # Products act on the last axis alone, and their result has the others as x has them.
            x, *rest = node.args
            if x.target in _VIEWS and _shape(x)[-1] == _shape(x.args[0])[-1]:
                node.args = (x.args[0], *rest)
                node.meta["shape"] = (*_shape(x.args[0])[:-1], _shape(node)[-1])
        elif node.target in _VIEWS:
            while node.args[0].target in _VIEWS:
                node.args = (node.args[0].args[0], node.args[1])
            if _shape(node.args[0]) == _shape(node):
                node.replace_all_uses_with(node.args[0])


_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def _shape(node: fx.Node) -> tuple[int, ...]:
    found = node.meta["shape"] if "shape" in node.meta else node.meta["tensor_meta"].shape
    return tuple(found)


def _products() -> dict[Any, Callable[..., Any]]:
    """Returns what matrix products are replaced by, where `ops.matvec` serves them."""

    def mm(x: Tensor, weight: Tensor) -> Any:
        if not is_served_natively(x):
            return NotImplemented
        # A constant, and thus a copy made once; none where a Linear hands over its transpose.
        return matvec(x, weight.t().contiguous())

    def addmm(base: Tensor, x: Tensor, weight: Tensor) -> Any:
        return NotImplemented if not is_served_natively(x) else base + mm(x, weight)

    return {torch.ops.aten.mm.default: mm, torch.ops.aten.addmm.default: addmm}
