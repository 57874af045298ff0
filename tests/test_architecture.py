"""Imports go down only, from layer to layer, and a library is imported in the layers that own it.

A layer is a folder of `src/rwkv_train` or a file next to them; `LAYERS` lists what it may import of
the others. tests/test_rooms.py does the same for the rooms inside a layer.
"""

from __future__ import annotations

import ast
import sys

import pytest

from tests.checkout import ROOT
from tests.import_graph import PACKAGE, SRC, imported, layer_of, source_files

BASE = {"errors", "files"}
INFERENCE = {
    *BASE,
    "command_line",
    "processors",
    "find_gpus",
    "config",
    "data",
    "checkpoint",
    "models",
}
# layer -> what it may import of the package: layers, or single modules with a dot
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "version": set(),
    "compiler": BASE,
    "command_line": {"errors", "files"},
    "processors": set(),
    "find_gpus": {"processors"},
    "machine_record": {"processors", "version"},
    "requirement_lines": set(),
    "config": {*BASE, "command_line"},
    "ops": {"errors", "compiler"},
    "data": {*BASE, "command_line", "compiler", "processors", "config.schema"},
    "checkpoint": {*BASE, "command_line", "processors"},
    "models": {"errors", "config.schema", "config.resolved", "config.versions", "ops"},
    "planning": {*BASE, "command_line", "config"},
    "report": {*BASE, "command_line", "config"},
    "training": {
        *BASE,
        "command_line",
        "version",
        "compiler",
        "processors",
        "find_gpus",
        "machine_record",
        "config",
        "ops",
        "data",
        "checkpoint",
        "models",
        "planning",
        "report",
        "inference",
        "evaluation",
    },
    # On top of everything that it verifies.
    "verification": {
        *BASE,
        "command_line",
        "processors",
        "machine_record",
        "config",
        "ops",
        "data",
        "checkpoint",
        "models",
        "report",
        "training",
    },
    "inference": INFERENCE,
    "serving": {*INFERENCE, "inference"},
    "evaluation": {*INFERENCE, "inference", "version"},
    "export": {*INFERENCE, "inference"},
    "doctor": {
        *BASE,
        "command_line",
        "version",
        "compiler",
        "processors",
        "find_gpus",
        "machine_record",
        "requirement_lines",
        "config",
        "ops",
        "training",
    },
}
# program at the top of the checkout -> what it may import of the package
PROGRAMS: dict[str, set[str]] = {
    "train.py": {"command_line", "training"},
    "make_data.py": {"command_line", "data"},
    "generate.py": {"command_line", "inference"},
    "compute_magic_prime.py": {"command_line", "data", "errors"},
    "check_requirements.py": {"requirement_lines"},
    "doctor.py": {"doctor"},
}
# library -> the only places that may import it
ONLY_IN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("pytorch_lightning", "lightning_fabric", "deepspeed", "wandb", "tensorboardX"),
        ("training/",),
    ),
    # inspect/lengths.py draws a histogram of the documents when asked to.
    "matplotlib": ("training/", "data/inspect/lengths.py"),
    "torch": (
        "ops/",
        "checkpoint/",
        "models/",
        "training/",
        "inference/",
        "serving/",
        "evaluation/",
        "export/",
        "verification/",
        "data/samples/",
        "data/sampling/sampler.py",
        "find_gpus.py",
        "machine_record.py",
        "doctor/",
    ),
    "tyro": ("config/",),
    # A chat template of the user's own is YAML too, and so are lm-eval's tasks.
    "yaml": ("config/", "data/chat/template.py", "evaluation/task_folders.py"),
    **dict.fromkeys(("starlette", "uvicorn", "h11"), ("serving/",)),
    **dict.fromkeys(("transformers", "lm_eval", "gguf"), ("export/", "evaluation/")),
}
# The modules that talk to the environment: to that of the libraries which a run launches; to the
# user's, for the CUDA toolkit that was chosen by the usual variables; and to OpenMP's, which
# generation sets as training does.
ENVIRONMENT = ["ops/native/cuda_toolkit.py", "processors.py", "training/environment.py"]


def may_import(where: str, module: str) -> bool:
    """Tells whether a file may import a module; where: its path below the package, or a program."""
    top, *below = module.split(".")
    if top == "":
        return False
    program = "/" not in where and where in PROGRAMS
    layer = where if program else where.split("/")[0].removesuffix(".py")
    if top == PACKAGE:
        allowed = PROGRAMS[where] if program else LAYERS[layer]
        names = {below[0], ".".join(below[:2])} if below else set()
        return below[:1] == [layer] or bool(names & allowed)
    if top in ("tests", "benchmarks", "train", "make_data", "generate"):
        return False
    plain = (*BASE, "version", "compiler", "processors", "command_line", "planning")
    if program or layer in (*plain, "requirement_lines"):
        return top in sys.stdlib_module_names
    return where.startswith(ONLY_IN.get(top, ""))


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


def test_every_layer_and_program_has_a_row_in_its_table():
    layers = {layer_of(module) for module in source_files()} - {""}
    programs = {path.name for path in ROOT.glob("*.py")}
    assert layers <= LAYERS.keys(), sorted(layers - LAYERS.keys())
    assert programs == PROGRAMS.keys()


def test_nothing_imports_upwards_sideways_or_a_library_of_another_layer():
    places = {path.relative_to(SRC / PACKAGE).as_posix(): path for path in source_files().values()}
    places |= {path.name: path for path in ROOT.glob("*.py")}
    faults = [
        f"{where}: {module}"
        for where, path in places.items()
        for module in imported(ast.parse(path.read_text(encoding="utf-8")))
        if where != "__init__.py" and not may_import(where, module)
    ]
    assert not faults, "\n".join(faults)


def test_three_modules_know_environment_variables():
    found = [
        path.relative_to(SRC / PACKAGE).as_posix()
        for path in source_files().values()
        if touches_environment(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert sorted(found) == ENVIRONMENT


def test_the_files_that_make_packages_are_empty_except_the_door_and_those_of_the_operators():
    found = [
        path
        for path in source_files().values()
        if path.name == "__init__.py" and path.stat().st_size and path.parent.parent.name != "ops"
    ]
    assert found == [SRC / PACKAGE / "__init__.py"]


def test_native_sources_have_no_python_among_them():
    assert not list((ROOT / "cuda").rglob("*.py"))


@pytest.mark.parametrize(
    ("where", "line", "allowed"),
    [
        ("ops/wkv6/native.py", "from rwkv_train.ops.backends.dispatch import choose", True),
        ("ops/wkv6/native.py", "from rwkv_train.models.rwkv6 import TimeMix", False),
        ("ops/wkv6/native.py", "from rwkv_train.config.schema import ModelConfig", False),
        ("data/samples/dataset.py", "from rwkv_train.config.schema import DataConfig", True),
        ("data/samples/dataset.py", "from rwkv_train.config.load import load_config", False),
        ("data/samples/dataset.py", "from rwkv_train import files", True),
        ("data/samples/dataset.py", "from rwkv_train import training", False),
        ("data/samples/dataset.py", "import torch.utils.data", True),
        ("data/binidx/reader.py", "import torch", False),
        ("config/resolve/resolve.py", "def f():\n    import torch", False),
        ("models/rwkv7.py", "from rwkv_train.ops.wkv7 import wkv7", True),
        ("models/rwkv7.py", "from rwkv_train.checkpoint.weights import load_weights", False),
        ("models/rwkv7.py", "from .layers import mix", False),
        ("inference/generate.py", "from rwkv_train.training.run import run", False),
        ("inference/generate.py", "import pytorch_lightning as pl", False),
        ("training/reporting/plot.py", "from matplotlib.figure import Figure", True),
        ("training/run.py", "from tests.helpers import load_json", False),
        ("errors.py", "import torch", False),
        ("files.py", "import os", True),
        ("train.py", "from rwkv_train.training.__main__ import main", True),
        ("train.py", "from rwkv_train.data.samples.dataset import TokenDataset", False),
        ("make_data.py", "import numpy", False),
    ],
)
def test_the_check_itself_tells_right_from_wrong(where: str, line: str, allowed: bool):
    (module,) = imported(ast.parse(line))
    assert may_import(where, module) is allowed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("os.environ['A'] = '1'", True),
        ("from os import getenv", True),
        ("os.getenv('A')", True),
        ("os.getpid()", False),
        ("config.environ", False),
    ],
)
def test_the_check_of_the_environment_tells_right_from_wrong(line: str, expected: bool):
    assert touches_environment(ast.parse(line)) is expected
