"""Processes that start warm: forked from one process that has imported all that a run needs.

    python -m tests.training.warm_start FD

Starting Python, torch, Lightning and DeepSpeed costs about five seconds of a core, a fork a tenth
of one. The server imports them, trains nothing, has no thread, and so every copy of it begins as a
process just started does. A copy is a process like any other: it has a session, an environment,
arguments and files of its own, leaves through the interpreter's normal end and can be killed; what
Lightning starts from within it starts cold. FD is a stream socket on which the server answers
requests of a `Server` until it is closed.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

from tests.checkout import ROOT
from tests.frame_memory import with_frame_memory

_CHUNK_BYTES = 1 << 16


class Server:
    """The process that is copied, as the tests see it; it ends with the one that made it.

    module: what it runs, with the descriptor of its socket as the argument; see `serve_warm`.
    environment: added to that of its start, for what the system reads only then.
    """

    def __init__(
        self,
        module: str = "tests.training.warm_start",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                # A Ctrl-C is for the tests; they end this one.
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: Sequence[int],
    ) -> int:
        """Starts a script (.py) or a module in the checkout; returns the id of its process.

        streams: descriptors of its standard input, output and error.
        """
        request = {
            "program": program,
            "arguments": list(arguments),
            "environment": dict(environment),
        }
        return self._ask(request, streams)

    def wait(self, process: int) -> int:
        """Waits for the end of a process; returns its exit status, or minus the signal's number."""
        return self._ask({"wait": process})

    def close(self) -> None:
        """Ends the server; what it has started continues."""
        self._socket.close()
        self._process.wait()

    def _ask(self, request: dict[str, object], streams: Sequence[int] = ()) -> int:
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(self._socket, [message], list(streams))
        self._socket.sendall(message[sent:])
        answer = self._socket.recv(_CHUNK_BYTES)
        assert answer, "the server of warm processes has ended"
        return int(answer)


def serve(connection: socket.socket) -> None:
    """Answers requests until the socket is closed; returns earlier in a copy that has run."""
    while True:
        message, streams, *_ = socket.recv_fds(connection, _CHUNK_BYTES, 3)
        if not message:
            return
        while not message.endswith(b"\n"):
            message += connection.recv(_CHUNK_BYTES)
        request = json.loads(message)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        process = os.fork()
        if process == 0:
            connection.close()
            _become(streams, **request)
            return
        for stream in streams:
            os.close(stream)
        connection.sendall(b"%d" % process)


def _become(
    streams: Sequence[int], program: str, arguments: Sequence[str], environment: dict[str, str]
) -> None:
    """Runs a program to its end as if the interpreter had been started with it."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        run = partial(runpy.run_path, program, run_name="__main__")
    else:
        run = partial(runpy.run_module, program, run_name="__main__", alter_sys=True)
    with_frame_memory(run)


# What Lightning, torch's optimizers and DeepSpeed import only when a run comes to it, and what the
# commands of the tutorials need besides.
LATE = (
    "rwkv_train.evaluation.evaluations",
    "rwkv_train.inference.chat.chat_program",
    "rwkv_train.inference.chat.conversation",
    "rwkv_train.inference.generating",
    "rwkv_train.data.convert.pipeline",
    "torch._inductor.config",
    "torch.distributed.algorithms.ddp_comm_hooks",
    "torch.utils.cpp_extension",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)


def _import_all(accelerator: str) -> None:
    """Imports what a run imports on its way; it imports by itself what is missing here."""
    from rwkv_train.config.load import load_config
    from rwkv_train.training.environment import prepare_libraries

    # DeepSpeed chooses its device when it is imported.
    prepare_libraries(accelerator)
    import_module("rwkv_train.training.run")
    import_module("rwkv_train.ops.native.custom_ops")
    for name in LATE:
        # A library's inner module may have another name in its next release.
        with suppress(ImportError):
            import_module(name)
    # The first command line costs ten times the second.
    load_config(["--proj_dir", "out"])


def serve_warm(descriptor: int, accelerator: str) -> None:
    """Imports all that a run needs and serves; returns in every copy, too, once it has run."""
    # The module that is copied is not __main__ of the copies; they must find this one closed.
    with socket.socket(fileno=descriptor) as endpoint:
        _import_all(accelerator)
        # Collecting garbage in a copy would touch, and so copy, every page of the imported.
        gc.freeze()
        serve(endpoint)


if __name__ == "__main__":
    serve_warm(int(sys.argv[1]), "cpu")
