"""Configuration from defaults, a YAML file and the command line, later ones winning.

A file is grouped in sections (`model: {n_layer: 12}`), the command line is flat (`--n_layer 12`).
Nothing here looks at the data, the checkpoints or the machine: that is `resolve`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import reprlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from rwkv_train.command_line import invoked_name, perhaps
from rwkv_train.config.command_line.argv import (
    Argument,
    asks_for_help,
    boolean,
    read_arguments,
    write_arguments,
)
from rwkv_train.config.command_line.fields import fields, sections
from rwkv_train.config.command_line.most_used import most_used
from rwkv_train.config.copy_places import expand_copy_homes
from rwkv_train.config.mixture_list import expand_homes
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.rwkv_lm.flags import FLAGS, similar_flag
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.sections import Section
from rwkv_train.errors import ConfigError
from rwkv_train.files import expand_home

# Flags are flat (--n_layer, not --model.n_layer), and a switch takes a value as in RWKV-LM
# (--grad_cp 1).
_TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
# Fields that hold paths, in which ~ stands for the home folder.
PATHS = frozenset(
    {
        *("data_file", "val_data_file", "tokenizer", "proj_dir", "load_model"),
        *("eval_include", "sample_prompts", "state_copies"),
    }
)
_LISTS = {"data_file": expand_homes, "state_copies": expand_copy_homes}


# For --help alone: reading a command line with the whole type is slow (`_fields_alone`).
@dataclasses.dataclass(frozen=True)
class _CommandLine(RunConfig):
    """Trains an RWKV-4, 5, 6 or 7 language model.

    Flags with their defaults; None is worked out from the data, the checkpoint or the machine.
    The flags of RWKV-LM's train.py (three generations) are understood as well.
    """

    config: str | None = None
    """YAML file with these settings in their sections, e.g. the proj_dir/config.yaml of a run;
    flags win over the file"""


def load_config(argv: Sequence[str]) -> RunConfig:
    """Returns the defaults, overlaid by the file named by --config, overlaid by the other flags.

    Prints the help and leaves with status 0 for -h or --help.  Raises ConfigError, in one line,
    for an unknown flag, a missing value, a value of the wrong type and a fault in the file.
    """
    if asks_for_help(argv):
        print(most_used())
        prog = invoked_name("train.py")
        tyro.cli(_CommandLine, args=["--help"], prog=prog, use_underscores=True, config=_TYRO)
    arguments = read_arguments(argv)
    base = _named_file([value for name, value in arguments if name == "config"])
    flags = [_complete(argument) for argument in arguments if argument.name != "config"]
    return _apply(flags, base)


def _written_out(name: str, value: Any) -> Any:
    """Returns a field's value, of a path with its home folder written out."""
    if name not in PATHS or not isinstance(value, str):
        return value
    try:
        return _LISTS.get(name, expand_home)(value)
    except ConfigError as error:
        raise ConfigError(f"--{name} {error}") from None


# A value that would be read as a home folder, or as such a value written literally.
_LIKE_HOME = re.compile(r"(?:\./)*~")


def _as_literal(name: str, value: Any) -> Any:
    """Returns a field's value for a file, where ./~ stands for a folder whose name begins so."""
    is_like_home = name in PATHS and isinstance(value, str) and _LIKE_HOME.match(value)
    return f"./{value}" if is_like_home else value


def _from_literal(name: str, value: Any) -> Any:
    """Returns the value that `_as_literal` has written; of a person's ~ the home folder."""
    if name in PATHS and isinstance(value, str) and value.startswith("./"):
        return value[2:] if _LIKE_HOME.match(value) else value
    return _written_out(name, value)


def _named_file(files: Sequence[str | None]) -> RunConfig:
    """Returns the configuration in the file that --config names, the defaults without one."""
    if len(files) > 1:
        raise ConfigError("--config is given twice; one file holds all sections")
    if not files:
        return RunConfig()
    if not files[0]:
        raise ConfigError("--config needs a value: the path of a YAML file")
    return read_config(Path(expand_home(files[0])))


def read_config(path: Path) -> RunConfig:
    """Returns the configuration in a YAML file; ConfigError names the file and the dotted path."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except RecursionError:
        raise ConfigError(f"--config {path} is nested too deeply; sections hold fields") from None
    # PyYAML lets Python's own errors about dates and numbers through.
    except (yaml.YAMLError, ValueError) as error:
        # Its messages have several lines, an error here has one.
        problem = " ".join(str(error).split())[:300]
        raise ConfigError(f"--config {path} is not YAML: {problem}") from None
    # An empty file, or one of comments only, is None.
    if content is None:
        return RunConfig()
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected the sections {', '.join(sections())}")
    # Any: each name has its own type of section, which `_section` has made.
    found: dict[str, Any] = {name: _section(path, name, body) for name, body in content.items()}
    return RunConfig(**found)


def dump_config(config: RunConfig) -> str:
    """Returns YAML text that read_config turns into `config` again: a commented section each.

    A resolved configuration is written as a user would give it.
    """
    if isinstance(config, ResolvedConfig):
        config = config.as_given()
    parts = []
    for name, section_type in sections().items():
        values = dataclasses.asdict(getattr(config, name)).items()
        body = {name: {key: _as_literal(key, value) for key, value in values}}
        # width: PyYAML folds texts at 80 columns, which would split a long path.
        text = yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        parts.append(f"# {section_type.__doc__}\n{text}")
    return "\n".join(parts)


def saved_values(text: str) -> dict[str, object]:
    """Returns leaf name -> value of what `dump_config` wrote, also in an older version.

    Fields that it lacks are absent; nothing is checked.
    """
    # `read_config` would refuse a field that this version no longer has.
    content = yaml.safe_load(text)
    return {name: value for body in content.values() for name, value in body.items()}


def _section(path: Path, name: object, body: object) -> Section:
    """Returns a section of a file; ConfigError names what does not belong there."""
    if not isinstance(name, str) or name not in sections():
        raise ConfigError(f"{path}: unknown section {name!r}{_advice(name)}")
    # A section whose lines are all commented out is None.
    if body is None:
        body = {}
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: {name}: expected `field: value` lines, got {_shown(body)}")
    values: dict[str, Any] = {}
    for key, value in body.items():
        entry = fields().get(key) if isinstance(key, str) else None
        if entry is None or entry.section != name:
            raise ConfigError(f"{path}: {name}.{key}: unknown field{_advice(key)}")
        try:
            values[key] = _from_literal(key, entry.checked(value))
        except ValueError:
            raise ConfigError(
                f"{path}: {name}.{key}: expected {entry.expected}, got {_shown(value)}"
            ) from None
    return sections()[name](**values)


def _shown(value: object) -> str:
    """Returns a value of a file in some words: one made of aliases may be longer than memory."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)


def _advice(key: object) -> str:
    """Returns advice about a misplaced or misspelt name of a file."""
    key = str(key).replace("-", "_")
    if key in fields():
        return f"; {key} belongs into the section {fields()[key].section}"
    if key in FLAGS:
        return "; it is a flag of RWKV-LM, to be given on the command line"
    return perhaps(key, [*sections(), *fields()])


def _complete(argument: Argument) -> Argument:
    """Returns the argument with a value that tyro reads; ConfigError if there is no such flag."""
    name, value = argument
    entry = fields().get(name)
    if entry is None:
        raise ConfigError(f"unknown flag --{name}{similar_flag(name)}")
    if entry.kind is bool:
        # tyro reads only True and False, RWKV-LM's scripts write 0 and 1.  Any other word is left
        # for tyro to refuse.
        truth = True if value is None else boolean(value)
        return Argument(name, value if truth is None else str(truth))
    if value is None:
        raise ConfigError(f"--{name} needs a value: {entry.expected}")
    return Argument(name, _written_out(name, value))


def _apply(flags: Sequence[Argument], base: RunConfig) -> RunConfig:
    """Returns `base` with these flags; raises ConfigError for the first value of a wrong type."""
    try:
        return _parse(flags, base)
    except SystemExit:
        # tyro has drawn a box for all faults together; find the first one and say it in a line.
        for flag in flags:
            try:
                _parse([flag], base)
            except SystemExit:
                expected = fields()[flag.name].expected
                raise ConfigError(
                    f"--{flag.name}: expected {expected}, got {flag.value!r}"
                ) from None
        raise


def _parse(flags: Sequence[Argument], base: RunConfig) -> RunConfig:
    """Returns `base` with these flags; raises SystemExit when tyro cannot read them."""
    if not flags:
        return base
    # Once each: a dataclass cannot have a field twice, a command line can.
    names = tuple(dict.fromkeys(flag.name for flag in flags))
    # tyro prints its own box before it leaves; `_apply` says the fault in one line.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        given = tyro.cli(
            _fields_alone(names),
            args=write_arguments(flags),
            use_underscores=True,
            add_help=False,
            config=_TYRO,
        )
    changes: dict[str, dict[str, object]] = {}
    for name in names:
        changes.setdefault(fields()[name].section, {})[name] = getattr(given, name)
    changed = {
        section: dataclasses.replace(getattr(base, section), **values)
        for section, values in changes.items()
    }
    return dataclasses.replace(base, **changed)


@functools.cache
def _fields_alone(names: tuple[str, ...]) -> type[object]:
    """Returns a flat dataclass of these fields of the schema.

    tyro looks through every field of the type it is given, which takes most of the time of reading
    a command line; few of the schema's hundred are on one.
    """
    return dataclasses.make_dataclass("Given", [(name, fields()[name].hint) for name in names])


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper with line breaks and other invisible characters escaped."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Unquoted, U+0085 and its like would be folded away as line breaks.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key given twice is a fault and not the last one wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)
