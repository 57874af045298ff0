"""The tables of docs/tutorials/from_rwkv_lm.md are those of the code, and miss no flag."""

from __future__ import annotations

import re

from rwkv_train.config.rwkv_lm.flags import FLAGS
from tests.config.rwkv_lm.flag_table import TABLE
from tests.docs.rwkv_lm_table import BEGIN, END, PAGE, tables


def test_the_tables_are_what_the_code_says():
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition(f"{BEGIN}\n")[2].partition(f"\n{END}")[0]
    assert shown == tables(), "write them anew: python -m tests.docs.rwkv_lm_table"


def test_no_flag_of_rwkv_lm_is_missing():
    named = set(re.findall(r"`--(\w+)`", tables()))
    assert {*FLAGS, *(flag for flag, _ in TABLE)} <= named
    assert len(FLAGS) > 80
