"""Serves a model to OpenAI's clients and to a page: `rwkv-serve --load_model X.pth`."""

from __future__ import annotations

import argparse
import ipaddress
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.command_line import (
    DefaultsFormatter,
    OneLineParser,
    invoked_name,
    path_argument,
    program,
)
from rwkv_train.errors import ConfigError, TrainerError, missing_package, short_reason
from rwkv_train.inference.model_flags import (
    add_machine_flags,
    add_model_flags,
    add_sampling_flags,
    require_at_least,
)
from rwkv_train.processors import prepare_threads

_SAMPLING = (
    *("temperature", "top_p", "top_k"),
    *("presence_penalty", "frequency_penalty", "penalty_decay"),
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENDING = """Where neither a request nor a flag says more, conversations are sampled as by
rwkv-chat, texts as by rwkv-generate. docs/serving.md has the rest."""


def serve_parser() -> argparse.ArgumentParser:
    """Returns the command line; importing torch is left to `main`."""
    p = OneLineParser(
        prog=invoked_name("python -m rwkv_train.serving"),
        description="Serves a model to OpenAI's clients and to a chat page in a browser.",
        epilog=_ENDING,
        formatter_class=DefaultsFormatter,
    )
    add_model_flags(p)
    add = p.add_argument
    add("--model_name", help="the model's name for clients; default: that of its file")
    add("--host", default="127.0.0.1", help="address to listen at")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--api_key", help="key that requests must bring; other users of this machine can see it")
    add("--api_key_file", type=path_argument, help="file of such keys, a line each")
    add(
        "--allowed_host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server, where it needs no key; may be repeated",
    )
    add(
        "--chat_template",
        type=path_argument,
        default="world",
        help="world (also of the G1 models), or the file that the training data were made with",
    )
    add(
        "--think",
        default="off",
        metavar="HOW",
        help="as in rwkv-chat, where a request says nothing",
    )
    add(
        "--pooling",
        choices=("mean", "last"),
        default="mean",
        help="vectors of texts: the mean over the tokens, or the last token",
    )
    add_sampling_flags(p, {**dict.fromkeys(_SAMPLING), "order": None})
    _add_limits(p)
    add("--quiet", action="store_true", help="print no line about each request")
    add_machine_flags(p)
    return p


def _add_limits(p: argparse.ArgumentParser) -> None:
    for name, default, text in (
        ("max_concurrent", 32, "texts written at the same time"),
        ("max_queue", 128, "prompts that may wait for a place; more are answered by 429"),
        ("max_prompt_tokens", 32768, "tokens of a prompt"),
        ("max_answer_tokens", 4096, "tokens of an answer"),
        ("max_body_bytes", 4 << 20, "bytes of a request"),
        ("body_seconds", 20, "seconds in which a request must arrive"),
        ("request_seconds", 600, "seconds in which it is answered, waiting included"),
        ("shutdown_seconds", 30, "seconds that answers have left when the server is to end"),
        ("cache_mb", 256, "MiB for states behind beginnings of prompts; 0: none are kept"),
    ):
        p.add_argument(f"--{name}", type=int, default=default, help=text)


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    arguments = serve_parser().parse_args(argv)
    try:
        interrupted = _serve(arguments)
    except TrainerError as error:
        print(f"error: {error.in_one_line()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupted = True
    # As shells report a program ended by Ctrl-C: 128 + SIGINT.
    return 130 if interrupted else 0


def _serve(a: argparse.Namespace) -> bool:
    # Before the import of torch, so that a wrong word is answered at once.
    keys = _check(a)
    prepare_threads()
    try:
        from rwkv_train.serving.application import ModelApplication
        from rwkv_train.serving.server_process import bound_socket, build_server, serve_until_ended
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(missing_package("rwkv-serve", error.name, "serve")) from error
    listening = bound_socket(a.host, a.port)
    from rwkv_train.serving.opening_service import open_service

    model, worker = open_service(a)
    names = () if keys else (*_LOOPBACK, a.host, *a.allowed_host)
    app = ModelApplication(model, worker, (lambda _: None) if a.quiet else _log)
    # From here on clients may connect, and wait a moment for the first answer.
    listening.listen()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(
        f"serving {model.name} at http://{shown}:{port} (the page), http://{shown}:{port}/v1 (the "
        "API); Ctrl-C ends it",
        flush=True,
    )
    try:
        server = build_server(
            app.asgi(keys, names), model.limits, shutdown_seconds=a.shutdown_seconds
        )
        return serve_until_ended(server, listening)
    finally:
        worker.close()


def _check(a: argparse.Namespace) -> tuple[str, ...]:
    """Returns the keys; raises ConfigError for what can be seen to be wrong at once."""
    require_at_least(a, max_concurrent=1, max_queue=0, max_prompt_tokens=1, max_answer_tokens=1)
    require_at_least(a, max_body_bytes=1024, body_seconds=1, request_seconds=1)
    require_at_least(a, shutdown_seconds=0, cache_mb=0)
    if not 0 <= a.port <= 65535:
        raise ConfigError(f"--port {a.port} must be between 0 and 65535")
    from rwkv_train.data.chat.template import load_template
    from rwkv_train.inference.chat.answer_openings import thinking

    thinking(a.think)
    load_template(a.chat_template)
    keys = _keys(a)
    if not keys and not _is_loopback(a.host):
        raise ConfigError(
            f"--host {a.host} can be reached from other machines, so a key is needed: give "
            "--api_key_file, or listen at 127.0.0.1"
        )
    if keys and a.allowed_host:
        raise ConfigError(
            f"--allowed_host {a.allowed_host[0]} is for a server without a key: with one it "
            "answers by every name; leave it out"
        )
    return keys


def _keys(a: argparse.Namespace) -> tuple[str, ...]:
    keys = [] if a.api_key is None else [a.api_key.strip()]
    if a.api_key_file is not None:
        try:
            lines = Path(a.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--api_key_file {a.api_key_file} cannot be read: {short_reason(error)}"
            ) from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"--api_key_file {a.api_key_file} holds no key; a line is one")
        keys += found
    # What a header can carry.
    if not all(key and key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ConfigError("a key must be letters, digits and signs of ASCII without spaces")
    return tuple(keys)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
