"""The project's programs: which one a command calls, and whether its flags are right."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rwkv_train.command_line import COMMANDS
from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import RunConfig
from rwkv_train.data.make_data_flags import HOW_MUCH, TOOLS, parse, parse_tool
from rwkv_train.data.synthetic.command import is_synthetic, synthetic_parser
from rwkv_train.errors import TrainerError
from tests.checkout import ROOT
from tests.docs.doc_pages import Command


def _called_by(script: Path) -> str:
    """Returns the module whose `main` a script of the checkout calls, or its own name."""
    found = re.search(r"from (rwkv_train[\w.]*) import main\b", script.read_text(encoding="utf-8"))
    return found[1].removesuffix(".__main__") if found else script.stem


# train.py, make_data.py and the like.
SCRIPTS = {script.name: _called_by(script) for script in ROOT.glob("*.py")}
LAUNCHERS = ("torchrun", "srun", "mpirun", "mpiexec", "deepspeed")


@cache
def installed() -> dict[str, str]:
    """Returns command -> module of the programs that an installation brings."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.scripts]")[2].partition("\n[")[0]
    found = re.findall(r'^(rwkv-\w+) = "([\w.]+):main"', table, re.MULTILINE)
    assert {name for name, _ in found} == set(COMMANDS)
    return {name: module.removesuffix(".__main__") for name, module in found}


def called(command: Command) -> tuple[str, list[str]] | None:
    """Returns the module and the arguments that a command gives to a program of ours; None: none.

    What a launcher starts counts; tests and benchmarks are modules too.
    """
    words = list(command.words)
    if words[:2] == ["docker", "run"]:
        # What stands behind the image's name runs inside.
        images = [at for at, word in enumerate(words) if re.fullmatch(r"rwkv-train(:\w+)?", word)]
        words = words[images[0] + 1 :]
    if words and words[0] in LAUNCHERS:
        places = [at for at, word in enumerate(words) if word in ("python", *SCRIPTS)]
        words = words[places[0] :] if places else []
        if words and words[0] in SCRIPTS:
            words.insert(0, "python")
    if not words:
        return None
    if words[0] in installed():
        return installed()[words[0]], words[1:]
    # In the text a script may stand without its interpreter.
    if words[0] in SCRIPTS:
        words.insert(0, "python")
    if re.fullmatch(r"(\S*/)?python3?", words[0]) and len(words) > 1:
        if words[1] == "-m" and len(words) > 2:
            return words[2], words[3:]
        name = words[1].rpartition("/")[2]
        if name in SCRIPTS:
            return SCRIPTS[name], words[2:]
    return None


def fault_of(module: str, arguments: Sequence[str]) -> str:
    """Returns what is wrong with the flags of one of our programs; empty when nothing is."""
    if module == "rwkv_train.training":
        return _fault(lambda: run_of(arguments))
    if module == "rwkv_train.data":
        return _fault(lambda: _parse_data(arguments))
    if not module.startswith("rwkv_train"):
        return _unknown_flags(arguments, _source(module))
    parser = _parser(module)
    if parser is not None:
        return _fault(lambda: parser.parse_args(list(arguments)))
    return _unknown_flags(arguments, help_of(module))


def run_of(arguments: Sequence[str]) -> RunConfig:
    """Returns the configuration of a command line of train.py; raises TrainerError."""
    config = load_config(translate(arguments).argv)
    check_fields(config)
    return config


@cache
def help_of(module: str) -> str:
    """Returns what a program prints for --help."""
    main = _module(module).main
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(["--help"])
    return out.getvalue()


@cache
def flags_of_all() -> frozenset[str]:
    """Returns every flag that any program of ours takes."""
    modules = {*installed().values(), "rwkv_train.inference.recall", "rwkv_train.checkpoint.merge"}
    modules.add("rwkv_train.checkpoint.convert_state")
    pages = [help_of(module) for module in modules]
    out = io.StringIO()
    for read in (parse_tool, synthetic_parser().parse_args):
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            read(["--help"])
    return frozenset(re.findall(r"--\w+", "\n".join([*pages, out.getvalue()])))


def _module(name: str) -> Any:
    found = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(found, "__path__") else found


@cache
def _parser(module: str) -> Any:
    """Returns the parser that a module makes, None where its maker has no such name."""
    found = vars(_module(module))
    makers = [made for name, made in found.items() if name.endswith("_parser") and callable(made)]
    return makers[0]() if len(makers) == 1 else None


def _parse_data(arguments: Sequence[str]) -> None:
    words = list(arguments)
    if words[0] == "--verify" and words[1] not in HOW_MUCH:
        words[0] = "--verify_pair"
    if is_synthetic(words):
        synthetic_parser().parse_args(words)
    else:
        (parse_tool if any(word in TOOLS for word in words) else parse)(words)


def _fault(read: Callable[[], object]) -> str:
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            read()
    except TrainerError as error:
        return str(error)
    except SystemExit as leaving:
        return told.getvalue() if leaving.code else ""
    return ""


def _source(module: str) -> str:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _unknown_flags(arguments: Sequence[str], known: str) -> str:
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", known)]
    return f"unknown: {', '.join(unknown)}" if unknown else ""
