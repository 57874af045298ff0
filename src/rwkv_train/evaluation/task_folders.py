"""Copies of folders of lm-eval tasks in which the data files are found from any working folder.

lm-eval takes a relative `data_files` from the working folder and not from the task's own, and keeps
a copy of the data that it takes again for another file of the same path and time. So the tasks are
written anew into a folder of their own, which lasts as long as they are in use: a path that leads
somewhere from the task's folder becomes absolute, and the copy of the data is kept there too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from rwkv_train.errors import ConfigError, DataError

OWN_TASKS = Path(__file__).parent / "tasks"
_ENDINGS = (".yaml", ".yml")


@contextmanager
def prepared_folders(folders: Sequence[str | Path]) -> Iterator[list[Path]]:
    """Yields a copy of each folder, which is removed afterwards.

    Raises ConfigError for a folder that does not exist or holds no task, DataError for a task that
    is no YAML.
    """
    with tempfile.TemporaryDirectory(prefix="rwkv-eval-") as place:
        cache = Path(place) / "cache"
        copies = []
        for number, folder in enumerate(map(Path, folders)):
            _require_tasks(folder)
            copies.append(Path(place) / f"{number}-{folder.resolve().name}")
            _copy(folder.resolve(), copies[-1], cache)
        yield copies


def _require_tasks(folder: Path) -> None:
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(
            f"the folder of tasks {folder} {kind}; give one that holds tasks of lm-eval (.yaml)"
        )
    if not any(path.suffix in _ENDINGS for path in folder.rglob("*")):
        raise ConfigError(f"the folder of tasks {folder} holds no .yaml of a task of lm-eval")


def _copy(source: Path, target: Path, cache: Path) -> None:
    for folder, _, names in os.walk(source):
        inside = target / Path(folder).relative_to(source)
        inside.mkdir(parents=True)
        for name in names:
            path = Path(folder) / name
            if path.suffix in _ENDINGS:
                (inside / name).write_text(_with_absolute_paths(path, cache), encoding="utf-8")
            elif path.suffix == ".py":
                # What a task calls by `!function` lies next to it; data stay where they are.
                shutil.copyfile(path, inside / name)


def _with_absolute_paths(path: Path, cache: Path) -> str:
    """Returns a task's YAML with its data files named from the root."""
    text = path.read_text(encoding="utf-8")
    try:
        # Nodes and not values: tags such as !function are for lm-eval to read.
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path} is not a YAML file that can be read: {first}") from error
    settings = _value(root, "dataset_kwargs")
    files = _value(settings, "data_files")
    if files is None or not isinstance(settings, yaml.MappingNode):
        return text
    if _value(settings, "cache_dir") is None:
        settings.value.append((_scalar("cache_dir"), _scalar(str(cache))))
    for leaf in _leaves(files):
        found = path.parent / leaf.value
        if not Path(leaf.value).is_absolute() and found.exists():
            leaf.value = str(found)
    written: str = yaml.serialize(root, allow_unicode=True)
    return written


def _value(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _leaves(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _leaves(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _leaves(value)


def _scalar(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)
