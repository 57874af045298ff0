"""Reads the documents: their fenced blocks, and the commands that stand in them and in the text.

A block of commands is fenced as `sh`. Its first line may say what it needs that a test has not:

    # needs 8 GPUs          run on CPU processes; the flags are also resolved for so many cards
    # needs 2 machines      its commands are started side by side, as on machines
    # needs SLURM           run by stand-ins for sbatch and srun
    # needs the network     not run, as are pip, hf, wandb sync, docker: nothing of ours is in it
    #!/bin/bash             a script, kept under the name that its second line gives: # job.sh

A block fenced as `text` right behind one shows what is printed: every line of it must be printed,
in this order, except that numbers and what `…` stands for may differ.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.checkout import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Words of the shell in front of a command, and its separators.
KEYWORDS = {"for", "do", "done", "while", "if", "then", "else", "fi", "time", "exec", "!"}
SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")", ";;"}
REDIRECTIONS = {">", ">>", "<", "2>", "&>", "<<<"}


class Block(NamedTuple):
    """A fenced block; page: from the top of the checkout; line: where it begins."""

    page: str
    line: int
    language: str
    text: str

    @property
    def needs(self) -> str:
        """What the first line says that it needs; empty for nothing."""
        found = re.match(r"# needs ([^:\n]+)", self.text)
        return found[1].strip() if found else ""

    @property
    def script(self) -> str:
        """The name under which a reader keeps it; empty for commands to type."""
        found = re.match(r"#!/bin/bash\n# (\S+)", self.text)
        return found[1] if found else ""


class Command(NamedTuple):
    """A command without assignments and redirections; variables: the assignments before it."""

    words: tuple[str, ...]
    variables: tuple[str, ...] = ()


def documents() -> list[Path]:
    """Returns all pages that tell users what to type."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "cuda").glob("*.md")]
    return sorted([*pages, *ROOT.glob("*.md")])


def blocks(path: Path) -> list[Block]:
    """Returns the fenced blocks of a page in order."""
    text = path.read_text(encoding="utf-8")
    page = path.relative_to(ROOT).as_posix()
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in FENCE.finditer(text)
    ]


def commands(text: str) -> list[Command]:
    """Returns the commands of a shell script as the shell would split them."""
    found: list[Command] = []
    unfinished = ""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(unfinished + line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            # A text in quotes goes on in the next line.
            unfinished += f"{line} "
            continue
        unfinished = ""
        part: list[str] = []
        for word in [*words, ";"]:
            if word not in SEPARATORS:
                part.append(word)
                continue
            command = _command(part)
            if command.words:
                found.append(command)
            part = []
    return found


def _command(words: list[str]) -> Command:
    kept: list[str] = []
    variables: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in REDIRECTIONS:
            skip = True
        elif not kept and word in KEYWORDS:
            continue
        elif not kept and re.match(r"[A-Z_]+=", word):
            variables.append(word)
        else:
            kept.append(word)
    # A line that goes on as the reader likes.
    if kept and kept[-1] in ("...", "…"):
        kept.pop()
    return Command(tuple(kept), tuple(variables))


def spans(path: Path) -> list[tuple[str, str]]:
    """Returns (heading, text) of the words in backticks, outside of fenced blocks."""
    heading, found = "", []
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line
        found += [(heading, span) for span in re.findall(r"`([^`\n]+)`", line)]
    return found


def unlike(shown: str, printed: str) -> str:
    """Returns the first line shown that was not printed in its place; empty: all were."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        pattern = re.compile(_pattern(line))
        if line.strip() not in ("", "…") and not any(pattern.fullmatch(p.strip()) for p in lines):
            return line
    return ""


NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def _pattern(line: str) -> str:
    """Returns an expression for a line: its numbers are any, `…` is anything, blanks are one."""
    parts = []
    for part in " ".join(line.split()).split("…"):
        pieces = NUMBER.split(part)
        parts.append(NUMBER.pattern.join(re.escape(p).replace(r"\ ", r"\s+") for p in pieces))
    return ".*".join(parts)
