"""Prints the flags that belong to an existing binidx pair: `PREFIX CTX_LEN`."""

from __future__ import annotations

import sys
from pathlib import Path

# Works in a bare checkout: this copy's package comes before an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from rwkv_train.command_line import (
    OneLineParser,
    packages_named,
    path_argument,
    printed_status,
    program,
)
from rwkv_train.errors import TrainerError

with packages_named():
    from rwkv_train.data.binidx.manifest import manifest_prefix, read_manifest
    from rwkv_train.data.inspect.summary import flag_line
    from rwkv_train.data.samples.token_sources import open_source


@program
def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 2 after an error message."""
    parser = OneLineParser(prog="compute_magic_prime.py", description=__doc__)
    parser.add_argument(
        "prefix", metavar="PREFIX", type=path_argument, help="the pair's path without .bin or .idx"
    )
    parser.add_argument("ctx_len", metavar="CTX_LEN", type=int, help="tokens per sample")
    arguments = parser.parse_args(argv)
    try:
        prefix = manifest_prefix(arguments.prefix)
        tokens = open_source(prefix, "binidx").tokens
        manifest = read_manifest(prefix)
        vocab_size = None if manifest is None else manifest.vocab_size
        print(flag_line(prefix, tokens, arguments.ctx_len, vocab_size))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return printed_status()


if __name__ == "__main__":
    with packages_named():
        sys.exit(main(sys.argv[1:]))
