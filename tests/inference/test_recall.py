"""The score of recall, of a model that looks the answers up and of models that do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import make_data
import train
from rwkv_train.errors import DataError
from rwkv_train.inference.recall import main, recall_score
from tests.checkout import ROOT
from tests.models.tiny import tiny_model


class LookUp:
    """Answers a key with the token that followed it before, a forgetful one with the next id."""

    def __init__(self, vocab_size, forgets=()):
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.emb = SimpleNamespace(weight=torch.zeros(1))
        self.forgets = forgets

    def features(self, ids):
        x = torch.zeros(*ids.shape, self.config.vocab_size)
        for row, tokens in enumerate(ids.tolist()):
            first = {}
            for place, token in enumerate(tokens):
                answer = first.get(token, 0)
                x[row, place, (answer + 1) % 128 if row in self.forgets else answer] = 1
                if place + 1 < len(tokens):
                    first.setdefault(token, tokens[place + 1])
        return x, None

    def head(self, x):
        return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of both tasks."""
    folder = tmp_path_factory.mktemp("recall")
    for task, more in (("mqar", ()), ("needle", ("--depths", "0,0.5,1"))):
        line = ("--synthetic", task, "-o", str(folder / task), "--rows", "40", "--val_rows", "30")
        assert make_data.main([*line, *more]) == 0
    return folder


def test_whoever_looks_the_answers_up_has_all_of_them_right(folder):
    score = recall_score(LookUp(128), str(folder / "mqar_val"))
    assert (score.accuracy, score.row_accuracy) == (1, 1)
    assert (len(score.asked), score.asked.sum()) == (30, 120)
    assert score.by_depth() == {}


def test_a_row_is_right_when_all_of_its_answers_are(folder):
    score = recall_score(LookUp(128, forgets=(1, 2, 4)), str(folder / "needle_val"))
    assert score.accuracy == score.row_accuracy == 27 / 30
    # Rows 1 and 4 have the needle in the middle, row 2 at the end.
    assert score.by_depth() == {0: 1, 0.5: 0.8, 1: 0.9}


def test_a_real_model_is_judged_by_its_largest_logit(folder):
    model = tiny_model("7", vocab_size=128)
    score = recall_score(model, str(folder / "mqar_val"), rows=7)
    tokens = np.fromfile(folder / "mqar_val.bin", "<u2").reshape(-1, 64)[:7].astype(np.int64)
    weights = np.fromfile(folder / "mqar_val.mask", np.uint8).reshape(-1, 64)[:7]
    with torch.no_grad():
        likeliest = model(torch.from_numpy(tokens))[0].argmax(-1).numpy()
    right = (likeliest[:, :-1] == tokens[:, 1:]) & (weights[:, 1:] > 0)
    assert score.right.tolist() == right.sum(1).tolist()
    assert score.asked.tolist() == [4] * 7


def test_data_whose_answers_are_not_known_or_not_in_the_vocabulary_is_refused(folder, tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "a text"}')
    made = ["1", "4", "--tokenizer", "bytes", "-o", str(tmp_path / "text")]
    assert make_data.main([str(tmp_path / "text.jsonl"), *made]) == 0
    with pytest.raises(DataError, match="no loss mask"):
        recall_score(LookUp(257), str(tmp_path / "text"))
    with pytest.raises(DataError, match="the model's vocabulary is 100"):
        recall_score(LookUp(100), str(folder / "mqar_val"))


def flags(folder, **changed):
    given = {
        "config": ROOT / "configs" / "mqar.yaml",
        "data_file": folder / "mqar",
        "val_data_file": folder / "mqar_val",
        "proj_dir": folder / "out",
        **changed,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_the_recipe_trains_on_rows_and_the_program_scores_what_it_saved(folder, capsys):
    status = train.main(
        flags(folder, micro_bsz=8, exit_tokens=2 * 8 * 64, plot=0, enable_progress_bar=0)
    )
    assert status == 0
    capsys.readouterr()
    model = ["--load_model", str(folder / "out" / "rwkv-final.pth")]
    assert main([*model, "--data_file", str(folder / "mqar_val")]) == 0
    assert " of 120 answers are right: " in capsys.readouterr().out
    assert main([*model, "--data_file", str(folder / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ctx_len": 96, "val_ctx_len": 64}, "which samples of --ctx_len 96 would cut"),
        ({"val_ctx_len": 96}, "which samples of --val_ctx_len 96 would cut; use --val_ctx_len 64"),
        ({"sampling": "random"}, "--sampling random and --sample_offset would read parts"),
        ({"sample_offset": 2}, "--sampling random and --sample_offset would read parts"),
    ],
)
def test_samples_that_would_cut_rows_are_refused(changed, message, folder, capsys):
    assert train.main(flags(folder, proj_dir=folder / "none", **changed)) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (folder / "none").exists()
