"""Every command and every flag that a page names exists and is understood by our own parsers."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_train.config.discovered import StartDiscovered
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.config.rwkv_lm.flags import FLAGS
from tests.checkout import ROOT
from tests.config.resolving import MINIPILE, SHAPE, but
from tests.docs.doc_pages import Block, Command, blocks, commands, documents, spans, unlike
from tests.docs.own_programs import called, fault_of, flags_of_all, run_of

# Programs of others, which a page may call.
FOREIGN = {
    *("pip", "hf", "wandb", "docker", "uv", "pre-commit", "ollama", "llama-server", "sbatch"),
    *("tensorboard", "nvidia-smi", "ulimit", "df", "unset", "sort", "ssh", "scp", "rsync"),
    *("head", "tail", "ls", "find", "printf", "export", "cat", "cp", "cd", "git", "scontrol"),
}
# What scripts of the pages are made of besides: the shell's own words and variables.
FOREIGN |= {"echo", "exit", "sleep", "seq", "[", "status=$?", "final", "start", "$@"}
# Flags of others' programs, and words that stand for any flag.
FOREIGN_FLAGS = {
    *("--upgrade", "--strict", "--gpu", "--flag", "--pty", "--no", "--local_rank", "--hostfile"),
    *("--nodes", "--ntasks", "--gpus", "--gpus-per-node", "--nproc_per_node", "--nnodes"),
    *("--node_rank", "--master_addr", "--rdzv_id", "--requeue", "--signal", "--dependency"),
    *("--network", "--shm", "--stop", "--user"),
    *("--max_restarts", "--rdzv_backend", "--rdzv_endpoint", "--rdzv_conf", "--shutdown_timeout"),
    *("--kill-on-bad-exit", "--open-mode", "--num_gpus"),
    # of benchmarks, where the text does not name the module
    *("--operators", "--widths"),
}
# Of sbatch and srun: what scripts in the documents ask for.
BATCH_OPTIONS = {
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal"),
    *("requeue", "array", "open-mode"),
}


def all_commands() -> Iterator[tuple[Block, Command]]:
    """Yields the commands in the fenced blocks of all pages."""
    for path in documents():
        for block in blocks(path):
            if block.language == "sh":
                for command in commands(block.text):
                    yield block, command


def without_variables(command: Command, block: Block) -> Command:
    """Returns a command with the variables of its page written out, those of a job as 0."""
    known = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    for earlier in blocks(_path(block)):
        for name, value in re.findall(r'^([A-Z]+)="([^"]*)"', earlier.text, re.MULTILINE):
            known.setdefault(name, value)
    words: list[str] = []
    for word in command.words:
        name = word.removeprefix("$")
        words += known[name].split() if word.startswith("$") and name in known else [word]
    return command._replace(words=tuple(words))


def _path(block: Block) -> Path:
    return next(path for path in documents() if path.as_posix().endswith(f"/{block.page}"))


def test_every_command_calls_a_program_that_is_known_with_flags_that_it_takes():
    faults, counted = [], 0
    for block, given in all_commands():
        command = without_variables(given, block)
        found = called(command)
        counted += found is not None
        if found is None:
            known = command.words[0] in FOREIGN or command.words[0].startswith("./")
            fault = "" if known else "unknown program"
        else:
            fault = fault_of(*found)
        # A line that goes on as the reader likes names no data.
        if fault and not ("..." in block.text and "is missing" in fault):
            faults.append(f"{block.page}:{block.line} {' '.join(command.words[:4])}: {fault}")
    assert not faults, "\n".join(faults)
    assert counted > 80


def test_every_flag_in_the_text_is_one_of_some_program():
    known = {*flags_of_all(), *FOREIGN_FLAGS, *(f"--{name}" for name in FLAGS)}
    faults = []
    for path in documents():
        # Flags of the past stand there.
        if path.name == "CHANGELOG.md":
            continue
        for heading, span in spans(path):
            if "benchmarks." in span:
                module, *words = span.removeprefix("python -m ").split()
                fault = fault_of(module, words)
            elif span.partition(" ")[0] in FOREIGN:
                continue
            else:
                flags = re.findall(r"(?<![\w-])--[a-z]\w*", span)
                fault = ", ".join(flag for flag in flags if flag not in known)
            if fault:
                faults.append(f"{path.name}, {heading}: {span}: {fault}")
    assert not faults, "\n".join(faults)


def runs() -> list[tuple[Block, list[str]]]:
    """Returns the command lines of train.py that are whole."""
    found = []
    for block, given in all_commands():
        command = without_variables(given, block)
        program = called(command)
        if program is None or "..." in block.text or command.words[0] == "rwkv-train":
            continue
        if program[0] == "rwkv_train.training" and "--config" not in program[1]:
            found.append((block, program[1]))
    return found


@pytest.mark.parametrize(
    ("block", "arguments"),
    [pytest.param(*run, id=f"{run[0].page}:{run[0].line}") for run in runs()],
)
def test_a_run_resolves_at_its_full_size_on_the_cards_it_asks_for(
    block: Block, arguments: list[str]
):
    config = run_of(arguments)
    cards = max(8, config.hardware.devices or 1)
    facts = but(MINIPILE, gpu_count=cards, gpu_has_bf16=True, has_loss_mask=True)
    if config.data.magic_prime is None:
        slots = MINIPILE.data.token_count // config.data.ctx_len - 1
        facts = but(facts, best_prime=max(p for p in range(slots - 400, slots) if is_prime(p)))
    if config.train.load_model and config.train.train_stage != 1:
        start = StartDiscovered(path=config.train.load_model, model=SHAPE)
        facts = dataclasses.replace(facts, start=start)
    found, _ = resolve(config, facts)
    assert found.hardware.accelerator == (config.hardware.accelerator.replace("auto", "gpu"))
    needed = re.match(r"(\d+) GPUs?", block.needs)
    if needed and "torchrun" not in block.text:
        assert config.hardware.devices in (None, int(needed[1]))


def is_prime(number: int) -> bool:
    """Tells whether a number is prime, and 2 modulo 3 as the sampler needs it."""
    return number % 3 == 2 and all(number % d for d in range(2, int(number**0.5) + 1))


def test_scripts_for_slurm_ask_for_options_that_there_are():
    options = [
        option
        for path in documents()
        for block in blocks(path)
        for option in re.findall(r"^#SBATCH --([\w-]+)", block.text, re.MULTILINE)
    ]
    assert len(options) > 5
    assert set(options) <= BATCH_OPTIONS


def own_texts() -> str:
    """Returns all texts in the package's code, a line each; what is filled in divides them."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(" ".join(node.value.split()))
    return "\n".join(found)


# Names and numbers of examples, in the place of which a message has others.
EXAMPLES = re.compile(r"…|\b[\w.-]+\.(?:jsonl|pth)\b|\bgpu\d+|\bHOST\b|\bNODE_RANK\b|\d+")


def test_messages_that_tutorials_explain_are_those_of_the_programs():
    texts, told = own_texts(), []
    for path in (ROOT / "docs" / "tutorials").glob("*.md"):
        table = path.read_text(encoding="utf-8").partition("| you see |")[2]
        for message in re.findall(r"^\| `((?:error|WARNING|killed)[^`]*)`", table, re.M):
            told.append(message)
            body = re.sub(r"^(error|WARNING): ", "", message)
            for part in EXAMPLES.split(body):
                piece = part.strip(" :;=()")
                assert len(piece) < 6 or piece in texts, f"{path.name}: {message}: {piece!r}"
    assert len(told) >= 15


def test_commands_are_split_as_the_shell_splits_them():
    text = (
        "A=1 python x.py --a 'b c' \\\n  --d | tail -n 1 > f   # remark\nfor i in 1; do ls; done\n"
    )
    assert [command.words for command in commands(text)] == [
        ("python", "x.py", "--a", "b c", "--d"),
        ("tail", "-n", "1"),
        ("i", "in", "1"),
        ("ls",),
    ]
    assert commands(text)[0].variables == ("A=1",)


def test_what_a_page_shows_is_compared_but_for_numbers_and_what_is_left_out():
    printed = "  start  at 3\nloss 1.5e-05, lr 0\nend\n"
    assert unlike("start at 100\nloss 2, …\n", printed) == ""
    assert unlike("loss 2, lr 1\nstart at 3\n", printed) == "start at 3"
    assert unlike("start\n", printed) == "start"
