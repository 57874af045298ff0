"""Docstrings say what a thing is or does, and a public name means one thing.

A function's docstring opens with a verb in the third person ("Returns the tokens of ..."), no
docstring with a noun clause ("What is returned."). A name that two modules define makes a reader
look in the wrong one; twins that a contract asks for are listed.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from tests.import_graph import PACKAGE, SRC, source_files

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
VERB = re.compile(r"[A-Z][a-z]*s")
# They look like verbs in the third person.
NOT_VERBS = {
    *("Always", "As", "Has", "Is", "Its", "Less", "Plus", "This", "Thus", "Us", "Was"),
    *("Arguments", "Batches", "Bytes", "Checkpoints", "Chunks", "Columns", "Counters", "Digests"),
    *("Documents", "Elements", "Faults", "Fields", "Files", "Flags", "Gradients", "Groups", "Ids"),
    *("Keys", "Lengths", "Lines", "Logits", "Losses", "Masks", "Messages", "Moments", "Names"),
    *("Notes", "Numbers", "Offsets", "Options", "Others", "Outputs", "Parameters", "Parts"),
    *("Pieces", "Positions", "Reasons", "Results", "Rows", "Samples", "Shapes", "Sizes", "States"),
    *("Steps", "Tensors", "Texts", "Tokens", "Types", "Values", "Weights", "Words"),
}
# They open a clause that stands for a noun and says neither what a thing is nor what it does.
CLAUSES = {"How", "What", "When", "Where", "Whether", "Which", "Who", "Why"}
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
# A property stands for a thing, so its docstring names one.
PROPERTIES = {"property", "cached_property", "setter"}
# Names by contract: what every version of RWKV, every backend, every operator and every program
# has (models/registry.py, ops/backends/dispatch.py).
TWINS = {
    *("NAME", "OPTIONAL_KEYS", "PARAMETERS", "RESIDUAL_DROPOUT", "TimeMix", "ChannelMix"),
    *("recognises", "sizes_from_shapes", "wkv_to_rwkv_package"),
    *("BACKENDS", "refuses", "run", "run_moved"),
    *("main", "parser"),
}


def opening_fault(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Returns a docstring's first line when it does not open with a verb in the third person."""
    text = ast.get_docstring(function)
    decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in function.decorator_list}
    if text is None or decorators & PROPERTIES:
        return None
    word = text.split()[0].rstrip(".,:;")
    return None if VERB.fullmatch(word) and word not in NOT_VERBS else text.splitlines()[0]


def public_names(tree: ast.Module) -> set[str]:
    """Returns the names without underscore that a module defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def test_docstrings_of_functions_open_with_a_verb_in_the_third_person():
    faults = [
        f"{path.relative_to(SRC / PACKAGE)}:{node.lineno} {node.name}: {line}"
        for path in source_files().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, FUNCTIONS) and (line := opening_fault(node))
    ]
    assert not faults, "\n".join(faults)


def test_no_docstring_opens_with_a_noun_clause():
    faults = [
        f"{path.relative_to(SRC / PACKAGE)}: {text.splitlines()[0]}"
        for path in source_files().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node))
        if text.split()[0] in CLAUSES
    ]
    assert not faults, "\n".join(faults)


def test_no_public_name_is_defined_in_two_modules():
    modules: dict[str, list[str]] = defaultdict(list)
    for module, path in source_files().items():
        for name in public_names(ast.parse(path.read_text(encoding="utf-8"))) - TWINS:
            modules[name].append(module)
    found = {name: places for name, places in sorted(modules.items()) if len(places) > 1}
    assert not found, "\n".join(f"{name}: {', '.join(places)}" for name, places in found.items())


def test_the_checks_tell_right_from_wrong():
    source = (
        'def a():\n    """Returns it."""\n'
        'def b():\n    """The sum."""\n'
        'def c():\n    """Tokens of it."""\n'
        '@property\ndef d():\n    """The sum."""\n'
        "def e(): ...\nX: int = 1\n_y = 2\nZ = 3\n"
    )
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if opening_fault(f)] == ["b", "c"]
    assert public_names(tree) == {"a", "b", "c", "d", "e", "X", "Z"}
