"""lm-eval's tasks: figures equal to our own evaluation's, offline, the same in any batch."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.evaluation.documents import document_of
from rwkv_train.evaluation.harness import TaskRuns, loaded_tasks
from rwkv_train.evaluation.perplexity import Policy, evaluate_text
from rwkv_train.evaluation.questions import Question, evaluate_choices, evaluate_last_words
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.evaluation.task_folders import OWN_TASKS, prepared_folders
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from tests.evaluation.own_tasks import QUESTIONS, SENTENCES, task_rows
from tests.import_graph import SRC
from tests.models.tiny import tiny_config, tiny_model

pytest.importorskip("lm_eval", reason="needs lm-eval (requirements-dev.txt)")

NAMES = ("rwkv_kinds", "rwkv_last_word", "rwkv_texts", "rwkv_copy")
# So many questions and sentences a small model learns by heart in a few seconds.
LEARNT = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def runs() -> Iterator[TaskRuns]:
    """The project's own tasks, loaded once."""
    with loaded_tasks(NAMES) as found:
        yield found


@pytest.fixture(scope="module")
def untrained() -> RWKV:
    return tiny_model("6", vocab_size=257)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> RWKV:
    """An RWKV-7 that has learnt the first answers and last words, and nothing else."""
    model = build_model(tiny_config("7", vocab_size=257, n_layer=1))
    initialize(model, seed=0, lr_init=1e-2)
    asked = [(q.text, f" {q.choices[q.answer]}") for q in QUESTIONS[:LEARNT]]
    texts = [(context, word) for context, word in asked + SENTENCES[: LEARNT // 2]]
    ids = [[0, *tokenizer.encode(context + word)] for context, word in texts]
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    weights = torch.zeros(tokens.shape)
    for row, (own, (_, word)) in enumerate(zip(ids, texts)):
        tokens[row, : len(own)] = torch.tensor(own)
        weights[row, len(own) - len(word) : len(own)] = 1
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(40):
        loss = model.loss(tokens[:, :-1], Targets(tokens[:, 1:], weights[:, 1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def own_figures(
    model: RWKV, tokenizer: Tokenizer, *, prefix: bool = True, questions: list[Question] = QUESTIONS
) -> dict[str, dict[str, float]]:
    """The figures of the four tasks by our own evaluation."""
    scorer = Scorer(model)
    choices = evaluate_choices(scorer, tokenizer, questions, prefix=prefix).values()
    words = evaluate_last_words(scorer, tokenizer, SENTENCES, prefix=prefix).values()
    documents = [document_of(row["text"], tokenizer) for row in task_rows("texts.jsonl")]
    text = evaluate_text(scorer, tokenizer, documents, Policy()).values()
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    return {
        "rwkv_kinds": {name: choices[name] for name in ("acc", "acc_norm", "acc_bytes")},
        "rwkv_last_word": {name: words[name] for name in ("perplexity", "acc")},
        "rwkv_texts": {name: text[name] for name in names},
        "rwkv_copy": {"exact_match": copied(model, tokenizer, prefix=prefix)},
    }


def copied(model: RWKV, tokenizer: Tokenizer, *, prefix: bool) -> float:
    """The share of words that are said again, written greedily one text at a time."""
    engine, right = Engine(model), 0
    for row in task_rows("copies.jsonl"):
        logits, states = engine.prefill([[0] * prefix + tokenizer.encode(row["prompt"])])
        tokens: list[int] = []
        while len(tokens) < 12 and (token := int(logits[0].argmax())):
            tokens.append(token)
            logits, states = engine.step([token], states)
        right += tokenizer.decode(tokens).partition(".")[0] == row["answer"]
    return right / 16


@pytest.mark.parametrize("prefix", [True, False])
def test_the_figures_of_four_tasks_are_those_of_our_own_evaluation(
    runs: TaskRuns, untrained: RWKV, trained: RWKV, tokenizer: Tokenizer, prefix: bool
):
    for model in (untrained, trained):
        found = runs.run(Scorer(model), tokenizer, prefix=prefix).tasks
        expected = own_figures(model, tokenizer, prefix=prefix)
        assert list(found) == list(NAMES)
        for name, figures in expected.items():
            own = {metric: found[name].figures[metric] for metric in figures}
            assert own == pytest.approx(figures, rel=1e-6), name
        assert found["rwkv_kinds"].figures["acc_stderr"] > 0


def test_random_weights_are_at_chance_and_trained_ones_are_not(trained: RWKV, tokenizer: Tokenizer):
    names = ["rwkv_kinds", "rwkv_last_word"]
    random_models = [tiny_model("6", seed=seed, vocab_size=257) for seed in range(4)]
    with loaded_tasks(names, limit=LEARNT // 2) as few, loaded_tasks(names) as all_of_them:
        learnt = few.run(Scorer(trained), tokenizer).tasks
        guesses = [all_of_them.run(Scorer(model), tokenizer).tasks for model in random_models]
    assert learnt["rwkv_kinds"].figures["acc"] == 1
    assert learnt["rwkv_last_word"].figures["acc"] == 1
    assert learnt["rwkv_last_word"].figures["perplexity"] < 1.5
    # 160 guesses of one in four: a standard deviation of 0.034.
    mean = sum(guess["rwkv_kinds"].figures["acc"] for guess in guesses) / 4
    assert abs(mean - 0.25) < 0.1
    for guess in guesses:
        assert guess["rwkv_last_word"].figures["acc"] == 0
        # Words of four bytes of 257 each.
        assert guess["rwkv_last_word"].figures["perplexity"] > 257**3


def test_what_is_read_together_does_not_matter(
    runs: TaskRuns, untrained: RWKV, tokenizer: Tokenizer
):
    found = [
        runs.run(Scorer(untrained, batch_size=size, chunk_len=chunk), tokenizer).tasks
        for size, chunk in ((32, 1024), (3, 7))
    ]
    for name in NAMES:
        assert found[1][name].figures == pytest.approx(found[0][name].figures, rel=1e-6)
        assert found[1][name].by_document.keys() == found[0][name].by_document.keys()


def test_a_task_reads_the_data_beside_it_whatever_the_working_folder_is(
    tmp_path: Path, untrained: RWKV, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "mine"
    folder.mkdir()
    text = (OWN_TASKS / "rwkv_kinds.yaml").read_text()
    text = text.replace("rwkv_kinds", "mine").replace('"{{question}}"', "!function mine.question")
    (folder / "mine.yaml").write_text(text)
    (folder / "mine.py").write_text("def question(row):\n    return row['question']\n")
    (folder / "kinds.jsonl").write_bytes((OWN_TASKS / "kinds.jsonl").read_bytes())
    monkeypatch.chdir("/")
    places = []
    for limit, count in ((None, 40), (3, 3)):
        with loaded_tasks(["mine"], [folder], limit=limit) as found:
            (figures,) = found.run(Scorer(untrained), tokenizer).tasks.values()
            assert figures.documents == count
    # Another content at the same time of change is read anew.
    stamp = (folder / "kinds.jsonl").stat().st_mtime_ns
    (folder / "kinds.jsonl").write_text(json.dumps(task_rows("kinds.jsonl")[0]) + "\n")
    os.utime(folder / "kinds.jsonl", ns=(stamp, stamp))
    with loaded_tasks(["mine"], [folder]) as found:
        assert found.run(Scorer(untrained), tokenizer).tasks["mine"].documents == 1
    with prepared_folders([folder]) as copies:
        places += copies
        assert str(folder / "kinds.jsonl") in (copies[0] / "mine.yaml").read_text()
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize(
    ("names", "include", "words"),
    [
        (["rwkv_kind"], [], "--tasks rwkv_kind: there is no such task; perhaps"),
        (["rwkv_kinds"], ["none"], "folder of tasks none does not exist"),
        (["rwkv_kinds"], ["."], "holds no .yaml"),
        (["broken"], ["broken"], "cannot be loaded"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    include: list[str],
    words: str,
):
    monkeypatch.chdir(tmp_path)
    if "broken" in names:
        (tmp_path / "broken").mkdir()
        text = (OWN_TASKS / "rwkv_kinds.yaml").read_text().replace("rwkv_kinds", "broken")
        (tmp_path / "broken" / "broken.yaml").write_text(text)
    else:
        # Without lm-eval's own tasks, which take seconds to list.
        monkeypatch.setattr("lm_eval.tasks.TaskManager", own_tasks_alone())
    with pytest.raises(ConfigError, match=words), loaded_tasks(names, include):
        pass


def own_tasks_alone() -> type:
    from lm_eval.tasks import TaskManager

    class OwnTasks(TaskManager):
        def __init__(self, include_path: list[str], include_defaults: bool = False) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    return OwnTasks


def test_lm_eval_is_imported_where_a_task_is_asked_for_and_nowhere_else():
    found = []
    for path in sorted(SRC.rglob("*.py")):
        # What stands in a function, or under TYPE_CHECKING, is not imported with the file.
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in getattr(node, "names", [])]
            if any("lm_eval" in name or "harness_model" in name for name in names):
                found.append(path.name)
    assert found == ["harness_model.py"]


def test_a_uniform_model_needs_log2_257_bits_a_byte(runs: TaskRuns, tokenizer: Tokenizer):
    # All weights are zero.
    model = build_model(tiny_config("6", vocab_size=257))
    found = runs.run(Scorer(model), tokenizer).tasks["rwkv_texts"].figures
    assert found["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)
