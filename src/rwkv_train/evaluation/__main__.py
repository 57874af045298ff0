"""Evaluates a checkpoint: `rwkv-eval --load_model X.pth --text FILE`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from rwkv_train.command_line import (
    DefaultsFormatter,
    OneLineParser,
    invoked_name,
    let_readers_leave,
    path_argument,
    program,
    status_of,
)
from rwkv_train.errors import ConfigError
from rwkv_train.files import write_atomically
from rwkv_train.inference.model_flags import add_machine_flags, add_model_flags
from rwkv_train.processors import prepare_threads

if TYPE_CHECKING:
    from rwkv_train.evaluation.evaluations import Evaluation, ResultSection

# Tokens of a chunk of the compression rate's published form.
COMPRESSION_WINDOW = 4000
_EVALUATIONS = ("text", "compress", "choices", "last_word", "tasks")


def evaluation_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.evaluation"),
        description="Evaluates a checkpoint, or two side by side.",
        formatter_class=DefaultsFormatter,
        allow_abbrev=False,
    )
    add_model_flags(p)
    _add_second_model(p.add_argument)
    add = p.add_argument_group("what is measured (several may be given)").add_argument
    names: dict[str, Any] = {"nargs": "+", "default": [], "type": path_argument}
    add("--text", metavar="NAME", help="perplexity of text files or binidx prefixes", **names)
    add("--compress", metavar="FILE", help="compression rate of texts, a source each", **names)
    add("--choices", metavar="FILE", help="jsonl: question, choices, answer (an index)", **names)
    add("--last_word", metavar="FILE", help="jsonl of texts, as LAMBADA", **names)
    add("--tasks", metavar="NAME", nargs="+", default=[], help="tasks of lm-eval")
    add("--include", metavar="FOLDER", help="folders of more tasks for --tasks", **names)
    _add_settings(p.add_argument_group("how").add_argument)
    add_machine_flags(p)
    return p


def _add_second_model(add: Any) -> None:
    add("--compare", type=path_argument, help="a second checkpoint, on the same data")
    add("--compare_states", type=path_argument, help="trained initial states for the second one")
    add("--compare_lora", type=path_argument, help="adapter for the second one")


def _add_settings(add: Any) -> None:
    add(
        "--policy",
        choices=("document", "windows", "stream"),
        default="document",
        help="of --text: each document whole, windows of it, or all with one state",
    )
    add("--window", type=int, help="tokens of a window (--compress: 4000)")
    add("--stride", type=int, help="tokens from window to window; none: --window")
    add("--prefix", choices=("0", "none"), default="0", help="what stands in front of every text")
    add("--text_key", default="text", help="key of the text in a .jsonl")
    add("--limit", type=int, help="at most so many documents of each")
    add("--fewshot", type=int, help="examples in front, of --tasks; none: the task's own number")
    add("--batch_size", type=int, default=16, help="most texts read together")
    add("--chunk_len", type=int, default=1024, help="tokens of each read at a time")
    add("--output", type=path_argument, help="file for the result as JSON")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = evaluation_parser().parse_args(argv)
    let_readers_leave()
    return status_of(lambda: _measure(arguments), prints=True)


def _measure(a: argparse.Namespace) -> None:
    _check(a)
    prepare_threads()
    with _evaluations(a) as evaluations:
        _evaluate(a, evaluations)


def _check(a: argparse.Namespace) -> None:
    """Raises ConfigError for flags that do not go together, before anything is imported or read."""
    if not any(getattr(a, name) for name in _EVALUATIONS):
        flags = ", ".join(f"--{name}" for name in _EVALUATIONS)
        raise ConfigError(f"nothing to measure: give some of {flags}")
    for name in ("limit", "batch_size", "chunk_len", "window", "stride"):
        value = getattr(a, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} must be at least 1")
    if a.fewshot is not None and a.fewshot < 0:
        raise ConfigError(f"--fewshot {a.fewshot} must be at least 0")
    # Given, but without a use.
    for name, users in {
        "include": ("tasks",),
        "fewshot": ("tasks",),
        "compare_states": ("compare",),
        "compare_lora": ("compare",),
    }.items():
        if getattr(a, name) not in (None, []) and not any(getattr(a, user) for user in users):
            raise ConfigError(f"--{name} is for --{users[0]}, which is not given; leave one out")
    if a.policy != "document" and not a.text:
        raise ConfigError(f"--policy {a.policy} is for --text, which is not given; leave one out")
    if a.compress and a.prefix != "0":
        raise ConfigError(
            "--compress has 0 in front of every chunk by definition; leave --prefix none out, or "
            "use --text FILE --policy windows --window 4000"
        )
    if a.output and Path(a.output).exists():
        raise ConfigError(f"{a.output} exists already; remove it or choose another --output")
    if a.output and not Path(a.output).parent.is_dir():
        raise ConfigError(f"--output {a.output}: there is no folder {Path(a.output).parent}")


@contextlib.contextmanager
def _evaluations(a: argparse.Namespace) -> Iterator[list[Evaluation]]:
    """Yields what is to be measured, with its files looked at before any model is loaded."""
    from rwkv_train.evaluation import evaluations as kinds
    from rwkv_train.evaluation.harness import loaded_tasks
    from rwkv_train.evaluation.perplexity import Policy

    prefix = a.prefix == "0"
    windows = a.policy == "windows"
    # --window alone may be meant for --compress.
    window = a.window if windows or not a.compress else None
    policy = Policy(a.policy, window, a.stride, prefix)
    found: list[Evaluation] = [
        kinds.TextEvaluation(name, policy, a.text_key, a.limit) for name in a.text
    ]
    if a.compress:
        length = COMPRESSION_WINDOW if a.window is None or windows else a.window
        found.append(kinds.CompressionEvaluation(a.compress, length, a.text_key, a.limit))
    found += [kinds.ChoicesEvaluation(name, a.limit, prefix=prefix) for name in a.choices]
    for name in a.last_word:
        found.append(kinds.LastWordEvaluation(name, a.text_key, a.limit, prefix=prefix))
    with contextlib.ExitStack() as stack:
        if a.tasks:
            runs = stack.enter_context(
                loaded_tasks(a.tasks, a.include, limit=a.limit, fewshot=a.fewshot)
            )
            found.append(kinds.TaskEvaluation(runs, prefix=prefix))
        yield found


def _evaluate(a: argparse.Namespace, evaluations: Sequence[Evaluation]) -> None:
    from rwkv_train.evaluation.report import section_lines

    given = [(a.load_model, a.load_states, a.lora)]
    if a.compare:
        given.append((a.compare, a.compare_states, a.compare_lora))
    about, found = [], []
    for number, paths in enumerate(given, 1):
        # One after the other: two models need not fit into memory together.
        facts, sections = _measured(a, evaluations, paths, number if a.compare else None)
        about.append(facts)
        found.append(sections)
    for both in zip(*found):
        print()
        for line in section_lines(both):
            print(line)
    if a.output:
        text = json.dumps(_finite(_result(about, found)), indent=1, ensure_ascii=False) + "\n"
        try:
            write_atomically(Path(a.output), text.encode())
        except OSError as error:
            raise ConfigError(
                f"--output {a.output} cannot be written: {error.strerror}; make room or name "
                "another folder"
            ) from error
        print(f"\nwrote {a.output}")


def _measured(
    a: argparse.Namespace,
    evaluations: Sequence[Evaluation],
    paths: tuple[str, str | None, str | None],
    number: int | None,
) -> tuple[dict[str, Any], list[ResultSection]]:
    """Returns what one model is, and what was found of it.

    paths: of checkpoint, states and adapter.  number: of two models, from 1.
    """
    from rwkv_train.evaluation.evaluated import open_evaluated
    from rwkv_train.evaluation.scoring import Scorer

    path, states, lora = paths
    model, tokenizer, facts = open_evaluated(
        path,
        load_states=states,
        lora=lora,
        tokenizer=a.tokenizer,
        device=a.device,
        precision=a.precision,
        wkv_backend=a.wkv_backend,
        weights=a.weights,
    )
    print(_model_line(facts, number), flush=True)
    # For eyes at a terminal; gone when it is done.
    with tqdm(unit=" passes", leave=False, disable=not sys.stderr.isatty()) as bar:

        def move() -> None:
            bar.update()

        scorer = Scorer(model, batch_size=a.batch_size, chunk_len=a.chunk_len, pulse=move)
        return facts, [s for one in evaluations for s in one.take(scorer, tokenizer)]


def _model_line(facts: dict[str, Any], number: int | None) -> str:
    name = {None: "", 1: "first: ", 2: "second: "}[number]
    more = "".join(f" with {facts[key]}" for key in ("states", "lora") if key in facts)
    return (
        f"{name}{facts['checkpoint']}{more}: RWKV-{facts['version']}, "
        f"{facts['parameters']:,} parameters, {facts['precision']} on {facts['device']}, "
        f"tokenizer {facts['tokenizer']}"
    )


def _result(about: list[dict[str, Any]], found: list[list[ResultSection]]) -> dict[str, Any]:
    from rwkv_train.evaluation.report import paired_differences
    from rwkv_train.version import code_version

    results = []
    for sections in zip(*found):
        entry: dict[str, Any] = {"kind": sections[0].kind, "name": sections[0].name}
        entry["figures"] = [section.figures for section in sections]
        if len(sections) == 2:
            entry["differences"] = {
                name: difference.values()
                for name, difference in paired_differences(*sections).items()
            }
        entry["notes"] = list(sections[0].notes)
        results.append(entry)
    return {"program": f"rwkv-eval {code_version()}", "models": about, "results": results}


def _finite(value: Any) -> Any:
    """Returns a value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
