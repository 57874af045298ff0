"""Which module of the package imports which, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.checkout import ROOT

SRC = ROOT / "src"
PACKAGE = "rwkv_train"


def source_files() -> dict[str, Path]:
    """Returns name -> path of every module, names without `rwkv_train.`; "" is the package."""
    found = {}
    for path in sorted((SRC / PACKAGE).rglob("*.py")):
        parts = path.relative_to(SRC / PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    return found


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the dotted names of imported modules, also in functions; relative ones with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from rwkv_train import files` and `from rwkv_train.ops import wkv6` name modules too
            is_own = module == PACKAGE or module.startswith(f"{PACKAGE}.")
            yield from (f"{module}.{a.name}" if is_own else module for a in node.names)


def layer_of(module: str) -> str:
    """Returns the layer of a module: ops.wkv6.native -> ops."""
    return module.split(".")[0]


def room_of(module: str) -> str:
    """Returns the room of a module: ops.wkv6.native -> ops.wkv6, ops.precision -> ops.precision."""
    return ".".join(module.split(".")[:2])


def own_imports() -> dict[str, set[str]]:
    """Returns module -> the modules of the package it imports, names without `rwkv_train.`."""
    files = source_files()
    arrows: dict[str, set[str]] = {}
    for module, path in files.items():
        found = set()
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if name.split(".")[0] == PACKAGE:
                target = name.partition(".")[2]
                found.add(target if target in files else target.rpartition(".")[0])
        arrows[module] = found - {module}
    return arrows


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Returns groups of nodes that reach one another (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found
