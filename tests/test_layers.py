"""Imports in `src` go down only, and heavy libraries stay where they belong.

| level | package                     | imports from src                                  |
|-------|-----------------------------|---------------------------------------------------|
| 0     | errors, files, version      | nothing                                           |
| 0     | compiler                    | errors, files                                     |
| 1     | config                      | errors                                            |
| 1     | ops                         | errors, compiler                                  |
| 1     | data                        | errors, files, compiler, config.schema            |
| 1     | checkpoint                  | errors, files                                     |
| 2     | models                      | errors, config.schema, ops                        |
| 2     | planning                    | errors, config                                    |
| 3     | training                    | all of the above                                  |
| 3     | inference                   | errors, config, data, checkpoint, models          |
| 4     | evaluation, export          | as inference, and inference                       |
| 5     | train.py                    | errors, config, training                          |
| 5     | make_data.py and its like   | errors, data                                      |

Any package may import itself; no other package may import the programs, tests or benchmarks.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"errors", "files"}
INFERENCE = {*BASE, "config", "data", "checkpoint", "models"}

# package (or program) -> what it may import from src: packages, or single modules with a dot
ALLOWED = {
    "errors": set(),
    "files": set(),
    "compiler": BASE,
    "version": set(),
    "config": BASE,
    "ops": {"errors", "compiler"},
    "data": {*BASE, "compiler", "config.schema"},
    "checkpoint": BASE,
    "models": {"errors", "config.schema", "ops"},
    "planning": {"errors", "config"},
    "training": {*BASE, "version", "config", "ops", "data", "checkpoint", "models", "planning"},
    "inference": INFERENCE,
    "evaluation": {*INFERENCE, "inference"},
    "export": {*INFERENCE, "inference"},
    "train.py": {"errors", "config", "training"},
    "make_data.py": {"errors", "data"},
    "compute_magic_prime.py": {"errors", "data"},
    "check_requirements.py": set(),
}
# library -> the only places that may import it
ONLY_IN = {
    **dict.fromkeys(
        ("pytorch_lightning", "lightning_fabric", "deepspeed", "wandb"), ("src/training/",)
    ),
    # lengths.py draws a histogram of the documents when asked to.
    "matplotlib": ("src/training/", "src/data/lengths.py"),
    "torch": (
        "src/ops/", "src/checkpoint/", "src/models/", "src/training/", "src/inference/",
        "src/evaluation/", "src/export/", "src/data/batch.py", "src/data/dataset.py",
        "src/data/sampler.py", "src/data/mixed.py", "src/data/windows.py",
    ),
    "tyro": ("src/config/",),
    # A chat template of the user's own is YAML too.
    "yaml": ("src/config/", "src/data/chat_template.py"),
    **dict.fromkeys(("transformers", "lm_eval", "gguf"), ("src/export/", "src/evaluation/")),
}
# The one module that talks to the environment of the libraries it launches.
ENVIRONMENT = "src/training/environment.py"


def source_files() -> list[Path]:
    """Every Python file of src, and the programs beside it."""
    return sorted([*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules imported, also inside functions; relative ones with their dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from src import files` and `from src.ops import wkv6` name modules too
            below_src = module == "src" or module.startswith("src.")
            yield from (f"{module}.{a.name}" if below_src else module for a in node.names)


def layer_of(path: str) -> str:
    """src/ops/wkv6/native.py -> ops, src/errors.py -> errors, train.py -> train.py."""
    parts = Path(path).parts
    return parts[1].removesuffix(".py") if parts[0] == "src" and len(parts) > 1 else parts[0]


def may_import(path: str, module: str) -> bool:
    """Whether the file may import this module."""
    top, *below = module.split(".")
    if top == "":
        return False
    if top == "src":
        layer = layer_of(path)
        names = {below[0], ".".join(below[:2])} if below else set()
        return below[:1] == [layer] or bool(names & ALLOWED[layer])
    if top in ("tests", "benchmarks", "train", "make_data"):
        return False
    if layer_of(path) in (*BASE, "compiler", "planning") or not path.startswith("src/"):
        return top in sys.stdlib_module_names
    return path.startswith(ONLY_IN.get(top, ""))


def touches_environment(tree: ast.AST) -> bool:
    """Whether os.environ or os.getenv and their like occur."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found = {node.attr} if node.value.id == "os" else set()
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            found = {alias.name for alias in node.names}
        else:
            continue
        if found & names:
            return True
    return False


def test_every_package_has_a_row_in_the_table():
    found = {layer_of(relative(path)) for path in source_files()} - {"__init__"}
    assert found <= ALLOWED.keys(), sorted(found - ALLOWED.keys())


def test_nothing_imports_upwards_sideways_or_a_library_of_another_layer():
    faults = []
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = relative(path)
        faults += [f"{name}: {module}" for module in imported(tree)
                   if not may_import(name, module)]
    assert not faults, "\n".join(faults)


def test_only_one_module_knows_environment_variables():
    found = [relative(path) for path in source_files()
             if touches_environment(ast.parse(path.read_text(encoding="utf-8")))]
    assert found == [ENVIRONMENT]


def test_the_files_that_make_packages_are_empty_except_those_of_the_operators():
    found = [relative(path) for path in source_files()
             if path.name == "__init__.py" and path.stat().st_size
             and path.parent.parent != ROOT / "src" / "ops"]
    assert not found


def test_native_sources_have_no_python_among_them():
    assert not list((ROOT / "cuda").rglob("*.py"))


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("src/ops/wkv6/native.py", "from src.ops.dispatch import choose", True),
        ("src/ops/wkv6/native.py", "from src.models.rwkv6 import TimeMix", False),
        ("src/ops/wkv6/native.py", "from src.config.schema import ModelConfig", False),
        ("src/data/dataset.py", "from src.config.schema import DataConfig", True),
        ("src/data/dataset.py", "from src.config.load import load_config", False),
        ("src/data/dataset.py", "from src import files", True),
        ("src/data/dataset.py", "from src import training", False),
        ("src/data/dataset.py", "import torch.utils.data", True),
        ("src/data/binidx.py", "import torch", False),
        ("src/config/resolve.py", "def f():\n    import torch", False),
        ("src/models/rwkv7.py", "from src.ops.wkv7 import wkv7", True),
        ("src/models/rwkv7.py", "from src.checkpoint.weights import load_weights", False),
        ("src/models/rwkv7.py", "from .layers import mix", False),
        ("src/inference/generate.py", "from src.training.run import run", False),
        ("src/inference/generate.py", "import pytorch_lightning as pl", False),
        ("src/training/plot.py", "from matplotlib.figure import Figure", True),
        ("src/training/run.py", "from tests.helpers import load_json", False),
        ("src/errors.py", "import torch", False),
        ("src/files.py", "import os", True),
        ("train.py", "from src.training.run import run", True),
        ("train.py", "from src.data.dataset import TokenDataset", False),
        ("make_data.py", "import numpy", False),
    ],
)
def test_the_check_itself_tells_right_from_wrong(path: str, line: str, allowed: bool):
    (module,) = imported(ast.parse(line))
    assert may_import(path, module) is allowed


@pytest.mark.parametrize(
    ("line", "expected"),
    [("os.environ['A'] = '1'", True), ("from os import getenv", True), ("os.getenv('A')", True),
     ("os.getpid()", False), ("config.environ", False)],
)
def test_the_check_of_the_environment_tells_right_from_wrong(line: str, expected: bool):
    assert touches_environment(ast.parse(line)) is expected
