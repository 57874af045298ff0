"""Says what a run takes before it starts: `rwkv-plan --model 1.5B --ctx_len 4096 --card 4090`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rwkv_train.command_line import program, status_of
from rwkv_train.planning.plan_flags import read_request
from rwkv_train.planning.plan_program import print_cards, print_request


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad input with one line on stderr.

    argv: the words after the program's name; None: those the program was called with.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return status_of(lambda: _plan(words), prints=True)


def _plan(words: list[str]) -> None:
    request = read_request(words)
    if request.lists_cards:
        print_cards()
    else:
        print_request(request)


if __name__ == "__main__":
    sys.exit(main())
