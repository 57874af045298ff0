"""Runs tasks of lm-eval: those of this folder, of folders of the user's, or lm-eval's own.

lm-eval is an optional package (the extra `eval`) and is imported when a task is asked for. Its
`evaluate` is called, and not `simple_evaluate`, which reseeds the process, calls git, and imports
transformers at the end for the sake of its version.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rwkv_train.command_line import perhaps
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import ConfigError, missing_package, short_reason
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.evaluation.task_folders import OWN_TASKS, prepared_folders

if TYPE_CHECKING:
    from rwkv_train.evaluation.harness_model import HarnessModel

# As lm-eval's own program draws the examples of few-shot prompts.
_FEWSHOT_SEED = 1234
NAME = "rwkv"


class TaskFigures(NamedTuple):
    """The figures of one task.

    figures: metric -> value, such as acc, with acc_stderr where it is a mean over documents.
    by_document: metric -> one value a document, in order, of the metrics that are such means.
    documents: their number.  higher_is_better: of each metric, where the task says so.
    """

    figures: dict[str, float]
    by_document: dict[str, list[float]]
    documents: int
    higher_is_better: dict[str, bool]


class TaskResults(NamedTuple):
    """The figures of tasks and groups, by name.

    pairs, moved_cuts: contexts with continuations, and those of them that were not cut where
    lm-eval's own way would have cut them (`encode_pair`).
    """

    tasks: dict[str, TaskFigures]
    pairs: int
    moved_cuts: int


class TaskRuns:
    """Tasks that were found and loaded, to be run on as many models as wanted.

    tasks: lm-eval's, by name; groups: sets of them with a figure of their own.
    """

    def __init__(self, loaded: Any, limit: int | None) -> None:
        self._loaded = loaded
        self._limit = limit

    @property
    def names(self) -> list[str]:
        """The tasks that are run, those of groups included."""
        return list(self._loaded["tasks"])

    def run(self, scorer: Scorer, tokenizer: Tokenizer, *, prefix: bool = True) -> TaskResults:
        """Returns the figures of every task and group.

        prefix: see `HarnessModel`. Raises ConfigError where a task asks for what the model cannot.
        """
        from lm_eval.evaluator import evaluate

        from rwkv_train.evaluation.harness_model import HarnessModel

        model = HarnessModel(scorer, tokenizer, prefix=prefix)
        try:
            with _without_bars():
                result = evaluate(
                    lm=model,
                    task_dict=self._loaded,
                    limit=self._limit,
                    bootstrap_iters=0,
                    log_samples=True,
                )
        # Of lm-eval, for what it does not allow or no model of ours has.
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(f"lm-eval: {short_reason(error)}") from error
        found = {name: _figures(name, result) for name in result["results"]}
        return TaskResults(found, model.pairs, model.moved_cuts)


def model_class() -> type[HarnessModel]:
    """Returns the class behind the name `rwkv`, which from now on lm-eval knows too.

    So that `simple_evaluate(model="rwkv", model_args=...)` finds it. Raises ConfigError where
    lm-eval is not installed, or would fail after all work because transformers does not load.
    """
    require_harness()
    require_whole_transformers()
    # Its own models: lm-eval lists them only as long as nobody has added one.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    from rwkv_train.evaluation.harness_model import HarnessModel

    if NAME not in model_registry:
        model_registry.register(NAME, target=HarnessModel)
    return HarnessModel


def require_harness(asker: str = "--tasks") -> None:
    """Raises ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(missing_package(asker, "lm-eval", "eval"))


def require_whole_transformers() -> None:
    """Raises ConfigError where a transformers is installed that cannot be imported.

    lm-eval's `simple_evaluate` imports it last of all, to record its version, if it is there.
    """
    if importlib.util.find_spec("transformers") is None:
        return
    try:
        importlib.import_module("transformers")
    # What an import that fails may raise depends on the packages it needs.
    except Exception as error:
        raise ConfigError(
            "the package transformers that is installed cannot be imported, at which lm-eval would "
            f"fail at its end ({short_reason(error)}); install one that fits, or uninstall it"
        ) from error


@contextmanager
def loaded_tasks(
    names: Sequence[str],
    include: Sequence[str | Path] = (),
    *,
    limit: int | None = None,
    fewshot: int | None = None,
    asker: str = "--tasks",
) -> Iterator[TaskRuns]:
    """Yields tasks by name, with their data read; what is kept for them is removed afterwards.

    include: folders of tasks, which come before this project's and lm-eval's own.
    limit: most documents of each task.  fewshot: examples in front; None: the task's own number.
    Raises ConfigError for a task that does not exist or whose data cannot be had.
    """
    require_harness(asker)
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _quieten_datasets()
    with prepared_folders([OWN_TASKS, *include]) as folders:
        paths = [str(folder) for folder in folders]
        manager = TaskManager(include_path=paths, include_defaults=False)
        known = set(manager.all_tasks)
        if not known.issuperset(names):
            # Thousands of files: only where a task is none of ours.
            manager = TaskManager(include_path=paths)
        for name in names:
            if name not in manager.all_tasks:
                hint = perhaps(name, manager.all_tasks)
                raise ConfigError(
                    f"{asker} {name}: there is no such task{hint}; the project's own are "
                    f"{', '.join(sorted(known))}"
                )
        yield TaskRuns(_load(manager, names, fewshot, asker), limit)


def _load(manager: Any, names: Sequence[str], fewshot: int | None, asker: str) -> Any:
    """Returns lm-eval's tasks, prepared as its `simple_evaluate` does."""
    try:
        loaded = manager.load(list(dict.fromkeys(names)))
    # A missing file, a network that is not there, a package that a task needs: anything.
    except Exception as error:
        raise ConfigError(
            f"{asker} {' '.join(names)}: a task cannot be loaded: {short_reason(error)}"
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own != 0 and (fewshot is not None or own is None):
            task.set_config(key="num_fewshot", value=fewshot or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _quieten_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Lets lm-eval prepare its requests, which takes moments, without a progress bar a task."""
    from lm_eval.api import task as module

    bar = module.tqdm
    module.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        module.tqdm = bar


def _figures(name: str, result: Any) -> TaskFigures:
    """Returns the figures of a task or group from lm-eval's result."""
    values = {
        key.partition(",")[0]: float(value)
        for key, value in result["results"][name].items()
        if "," in key and "_stderr" not in key and _is_number(value)
    }
    samples = result.get("samples", {}).get(name, [])
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    by_document = {}
    for metric in list(values):
        own = [sample.get(metric) for sample in samples]
        if not own or not all(map(_is_number, own)):
            continue
        numbers = [float(value) for value in own]
        mean = math.fsum(numbers) / len(numbers)
        # Of a perplexity the documents have logarithms.
        if math.isclose(mean, values[metric], abs_tol=1e-12) and len(numbers) > 1:
            by_document[metric] = numbers
            variance = math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
            values[f"{metric}_stderr"] = math.sqrt(variance / len(numbers))
    better = result.get("higher_is_better", {}).get(name, {})
    return TaskFigures(
        values,
        by_document,
        len(samples),
        {metric: bool(up) for metric, up in better.items() if up is not None},
    )


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
