"""The rows of the project's own tasks."""

from __future__ import annotations

import json

from rwkv_train.evaluation.questions import read_question, split_last_word
from rwkv_train.evaluation.task_folders import OWN_TASKS


def task_rows(name: str) -> list[dict]:
    """Returns the rows of a file."""
    return [json.loads(line) for line in (OWN_TASKS / name).read_text("utf-8").splitlines()]


QUESTIONS = [read_question("row", row) for row in task_rows("kinds.jsonl")]
SENTENCES = [split_last_word("row", row["text"]) for row in task_rows("last_words.jsonl")]
