"""Runs a page's commands in a real bash, in which `python` and our commands start warm and small.

The folder that comes first on the PATH holds one small program under the names `python`, `rwkv-…`,
`torchrun` and `srun`. It hands its arguments, variables, folder and streams to this process, which
makes the arguments small (toy_sizes.py), starts what the name stands for by fork from a process
that has imported everything (tests/training/warm_start.py), and tells the exit status. So every
command costs what its work costs, and bash itself does what a shell does.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.docs.doc_pages import Block, Command
from tests.docs.own_programs import called, installed
from tests.docs.toy_sizes import small
from tests.launch.launcher_variables import NODES, task, torchrun
from tests.training.runs import ranks_environment, server

STAND_IN = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({address!r})
    name = os.path.basename(sys.argv[0])
    asked = {{"words": [name, *sys.argv[1:]], "variables": dict(os.environ), "folder": os.getcwd()}}
    message = json.dumps(asked).encode() + b"\\n"
    sent = socket.send_fds(s, [message], [0, 1, 2])
    s.sendall(message[sent:])
    answer = s.recv(100)
sys.exit(int(answer or 1))
"""
# What a batch system does with a script, in order and here.
SBATCH = """#!/bin/bash
echo "Submitted batch job 77"
while [[ "${1:-}" == --* ]]; do shift; done
SLURM_JOB_ID=77 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NODELIST=gpu07 bash "$@"
"""
RANKS = 2
_CHUNK_BYTES = 1 << 16


class Printed(NamedTuple):
    """The exit status of a page's commands, and what each block has printed."""

    status: int
    blocks: dict[Block, str]


class ToyShell:
    """The PATH's first folder and the thread that answers its programs; a context.

    page: of whose commands it is (toy_sizes.py has exceptions for some).
    """

    def __init__(self, page: str) -> None:
        self.page = page
        # Short: a socket's path has at most 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="toy-")
        self.bin = Path(self._folder.name) / "bin"
        self._listener = socket.socket(socket.AF_UNIX)
        self._lock = threading.Lock()
        # Where the machines of a page meet, whatever it says.
        self._meeting = _meeting()

    def __enter__(self) -> ToyShell:
        address = f"{self._folder.name}/socket"
        self._listener.bind(address)
        self._listener.listen()
        self.bin.mkdir()
        program = self.bin / "python"
        program.write_text(STAND_IN.format(python=sys.executable, address=address))
        program.chmod(0o755)
        for name in (*installed(), "python3", "torchrun", "srun"):
            (self.bin / name).symlink_to("python")
        (self.bin / "sbatch").write_text(SBATCH)
        (self.bin / "sbatch").chmod(0o755)
        # Before the first command, whose start would otherwise take its seconds.
        server()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave the thread waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._folder.cleanup()

    def run(self, page: Sequence[Block], folder: Path) -> Printed:
        """Runs blocks in order in one shell, which stops at the first command that fails."""
        mark = "\x1dblock"
        parts = ["set -euo pipefail"]
        for number, block in enumerate(page):
            body = _side_by_side(block.text) if "machines" in block.needs else block.text
            if block.script:
                body = f"cat > {block.script} <<'END OF SCRIPT'\n{block.text}END OF SCRIPT\n"
            parts.append(f"printf '\\n{mark}{number}\\n'\n{body}")
        variables = {
            **os.environ,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }
        done = subprocess.run(
            ["bash", "-c", "\n".join(parts)],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        told = {}
        for piece in done.stdout.split(mark)[1:]:
            number, _, text = piece.partition("\n")
            told[page[int(number)]] = text
        return Printed(done.returncode, told)

    def program(self, words: list[str]) -> tuple[str, list[str]]:
        """Returns the module that a command runs, and its small arguments."""
        found = called(Command(tuple(words)))
        if found is None:
            raise ValueError(f"{shlex.join(words)} is no program of ours")
        module, given = found
        return module, small(self.page, module, given)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            message, streams, *_ = socket.recv_fds(connection, _CHUNK_BYTES, 3)
            while not message.endswith(b"\n"):
                message += connection.recv(_CHUNK_BYTES)
            asked = json.loads(message)
            try:
                status = self._start(asked["words"], asked["variables"], asked["folder"], streams)
            except BaseException as error:
                os.write(streams[2], f"toy shell: {error!r}\n".encode())
                status = 97
            finally:
                for stream in streams:
                    os.close(stream)
            connection.sendall(b"%d" % status)

    def _start(
        self, words: list[str], variables: Mapping[str, str], folder: str, streams: Sequence[int]
    ) -> int:
        module, arguments = self.program(words)
        call = [folder, module, *arguments]
        processes = []
        for more in _ranks(words[0], arguments, variables, self._meeting):
            with self._lock:
                own = {**variables, **more}
                processes.append(server().start("tests.docs.toy_program", call, own, streams))
        statuses = [self._wait(process) for process in processes]
        return next((status % 256 for status in statuses if status), 0)

    def _wait(self, process: int) -> int:
        # Not by the server, which would do nothing else meanwhile.
        ended = os.pidfd_open(process)
        try:
            select.select([ended], [], [])
        finally:
            os.close(ended)
        with self._lock:
            return server().wait(process)


def _meeting() -> dict[str, str]:
    """Returns an address and a port that is free."""
    place = ranks_environment(RANKS)[0]
    return {name: place[name] for name in ("MASTER_ADDR", "MASTER_PORT")}


def _ranks(
    launcher: str,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    machines: Mapping[str, str],
) -> list[dict[str, str]]:
    """Returns the variables of every process that a command starts.

    Several devices are processes that a test starts warm in the program's place. machines: where
    commands meet that are started on several machines.
    """
    meeting = _meeting()
    if launcher == "torchrun":
        own = {**meeting, "TORCHELASTIC_USE_AGENT_STORE": "False"}
        return [torchrun(rank, RANKS, rank, RANKS, **own) for rank in range(RANKS)]
    if launcher == "srun":
        if "--num_nodes=2" in arguments:
            return [task(n, RANKS, 0, n, **NODES, **meeting) for n in range(RANKS)]
        return [task(rank, RANKS, rank, **meeting) for rank in range(RANKS)]
    if "NODE_RANK" in variables:
        return [dict(machines)]
    return ranks_environment(RANKS) if "--devices=2" in arguments else [{}]


def _side_by_side(text: str) -> str:
    """Returns a script that starts its commands at once and fails if one of them does."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    started = "\n".join(f"{line} & toy_jobs+=($!)" for line in lines if line.strip())
    return f'toy_jobs=()\n{started}\nfor job in "${{toy_jobs[@]}}"; do wait "$job"; done\n'
