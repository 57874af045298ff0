"""The model behind lm-eval's interface: its name, what it writes, where it cuts texts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.evaluation import harness
from rwkv_train.evaluation.harness import loaded_tasks, model_class
from rwkv_train.evaluation.questions import evaluate_last_words
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.evaluation.task_folders import OWN_TASKS, prepared_folders
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.models.backbone import RWKV
from tests.evaluation.own_tasks import SENTENCES
from tests.evaluation.small_vocabulary import small_tokenizer
from tests.models.tiny import tiny_model

pytest.importorskip("lm_eval", reason="needs lm-eval (requirements-dev.txt)")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.fixture(scope="module")
def untrained() -> RWKV:
    return tiny_model("6", vocab_size=257)


def test_lm_eval_finds_the_model_by_its_name(
    tmp_path: Path, untrained: RWKV, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    from lm_eval import simple_evaluate
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    torch.save(untrained.state_dict(), tmp_path / "model.pth")
    # It lists packages and calls git for seconds.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda result: None)
    known = model_class()
    assert get_model("rwkv") is known and get_model("dummy") is not known
    with prepared_folders([OWN_TASKS]) as folders:
        result = simple_evaluate(
            model="rwkv",
            model_args=f"load_model={tmp_path / 'model.pth'},prefix=none",
            tasks=["rwkv_last_word"],
            task_manager=TaskManager(include_path=str(folders[0]), include_defaults=False),
            bootstrap_iters=0,
            batch_size=4,
            device="cpu",
        )
    found = result["results"]["rwkv_last_word"]["perplexity,none"]
    own = evaluate_last_words(Scorer(untrained), tokenizer, SENTENCES, prefix=False).values()
    assert found == pytest.approx(own["perplexity"], rel=1e-6)
    assert result["config"]["prefix"] == "none"
    for arguments in ("pretrained=x", f"load_model={tmp_path / 'model.pth'},prefix=1"):
        with pytest.raises(ConfigError, match="expected"):
            get_model("rwkv").create_from_arg_string(arguments)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_written_ends_at_a_stop_text_or_after_so_many_tokens(
    untrained: RWKV, tokenizer: Tokenizer, batch_size: int
):
    contexts = ["a duck", "", "one two three four", "x", "a duck"]
    whole = []
    for context in contexts:
        engine = Engine(untrained)
        logits, states = engine.prefill([[0, *tokenizer.encode(context)]])
        tokens: list[int] = []
        for _ in range(20):
            tokens.append(int(logits[0].argmax()))
            logits, states = engine.step(tokens[-1:], states)
        assert 0 not in tokens
        whole.append(tokenizer.decode(tokens))
    adapter = model_class()(Scorer(untrained, batch_size=batch_size), tokenizer)

    def written(**settings: object) -> list[str]:
        asked = [SimpleNamespace(args=(context, settings)) for context in contexts]
        return adapter.generate_until(asked)

    assert written(max_gen_toks=20) == whole
    stop = whole[0][5:7]
    assert written(until=[stop, ""], max_gen_toks=20) == [text.partition(stop)[0] for text in whole]
    drawn = written(do_sample=True, temperature=1.5, max_gen_toks=20)
    assert drawn == written(do_sample=True, temperature=1.5, max_gen_toks=20) != whole
    # The same context is drawn for anew.
    assert drawn[0] != drawn[4]


def test_cuts_within_a_token_are_counted_and_made_right(tmp_path: Path):
    tokenizer = small_tokenizer(tmp_path)
    model = tiny_model("6", vocab_size=tokenizer.vocab_size)
    adapter = model_class()(Scorer(model), tokenizer, prefix=True)
    assert adapter._encode_pair("it is", " so")[1] == tokenizer.encode("is so")
    assert adapter._encode_pair("a duck", " swims")[0][0] == 0
    assert (adapter.pairs, adapter.moved_cuts) == (2, 1)


def test_a_transformers_that_does_not_load_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch):
    harness.require_whole_transformers()

    def fail(name: str) -> None:
        raise ImportError("tokenizers>=0.22 is required. Found 0.1")

    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(harness.importlib, "import_module", fail)
    with pytest.raises(ConfigError, match=r"transformers .* cannot be imported.*0.22"):
        model_class()


def test_without_lm_eval_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    told = r"--tasks needs .* lm-eval: .*rwkv-train\[eval\]"
    with pytest.raises(ConfigError, match=told), loaded_tasks(["rwkv_kinds"]):
        pass
