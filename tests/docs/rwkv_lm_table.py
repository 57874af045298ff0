"""Writes the tables of docs/tutorials/from_rwkv_lm.md from the code that translates the flags.

python -m tests.docs.rwkv_lm_table     writes them anew
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rwkv_train.config.rwkv_lm.flags import FLAGS, Idle, Refused, Taken
from tests.checkout import ROOT
from tests.config.rwkv_lm.flag_table import TABLE

PAGE = ROOT / "docs" / "tutorials" / "from_rwkv_lm.md"
BEGIN, END = "<!-- flags: python -m tests.docs.rwkv_lm_table -->", "<!-- end of flags -->"
# What RWKV-LM's own scripts and users write for "none", "all" or "work it out".
PROBES = ("", "0", "-1", "None", "auto")


def special_values(flag: str, row: Taken) -> str:
    """Returns the values that the translation changes, as `theirs` → `ours`."""
    changed = []
    probes = [*PROBES, *(value for name, value in TABLE if name == flag and value is not None)]
    for value in dict.fromkeys(probes):
        try:
            ours, _ = row.rule(value)
        except ValueError:
            continue
        if ours != value:
            meant = "not given" if ours == "None" else f"`{ours}`"
            changed.append(f"`{value or chr(34) * 2}` → {meant}")
    return ", ".join(changed)


def tables() -> str:
    """Returns the tables of all flags of RWKV-LM's three generations."""
    taken, refused, idle = [], [], []
    for flag, row in FLAGS.items():
        if isinstance(row, Taken):
            name = "same" if row.field == flag else f"`--{row.field}`"
            taken.append(f"| `--{flag}` | {name} | {special_values(flag, row)} |")
        elif isinstance(row, Refused):
            off = ", ".join(f"`{value}`" for value in row.off if value)
            refused.append(f"| `--{flag}` | {off} | {row.reason} |")
        else:
            assert isinstance(row, Idle)
            idle.append(f"| `--{flag}` | {row.notice} |")
    same = sorted({flag for flag, _ in TABLE} - FLAGS.keys())
    return "\n\n".join(
        [
            textwrap.fill(
                f"**The same here, word for word:** {', '.join(f'`--{flag}`' for flag in same)}.",
                150,
                break_on_hyphens=False,
            ),
            "**Taken over**, under another name or with special values:",
            _table(("RWKV-LM", "here", "values that change"), taken),
            "**Accepted without effect**, which is said once:",
            _table(("RWKV-LM", "what is said"), idle),
            "**Refused**, unless the value is the one that means off:",
            _table(("RWKV-LM", "off", "why, and what instead"), refused),
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", encoding="utf-8")
