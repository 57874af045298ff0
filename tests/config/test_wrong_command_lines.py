"""Wrong command lines end with status 2 and one clear line, right ones reach the run."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import train
from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.training import __main__ as training_main
from tests.checkout import ROOT

HEAVY = (
    *("torch", "pytorch_lightning", "lightning_fabric", "deepspeed", "wandb", "numpy"),
    *("lm_eval", "transformers"),
)
DATA = ["--data_file", "data/x"]

# A wrong command line and the words its message must have.
WRONG = [
    (["--n_layr", "5"], ["--n_layr", "--n_layer"]),
    (["--lr", "1e-4"], ["--lr", "--lr_init"]),
    (["--seed", "3"], ["unknown flag --seed; perhaps you meant --random_seed"]),
    (["--batch_size", "3"], ["--batch_size", "perhaps you meant --micro_bsz"]),
    (["--max_epoch", "3"], ["--max_epoch", "perhaps you meant --exit_epoch"]),
    (["--warmup", "10"], ["--warmup", "--warmup_steps"]),
    (["--n_layer", "twelve"], ["--n_layer", "whole number", "twelve"]),
    (["--n_layer"], ["--n_layer", "value"]),
    (["stray"], ["stray"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ([], ["--data_file", "make_data.py"]),
    ([*DATA, "--micro_bsz", "0"], ["--micro_bsz 0", "at least 1"]),
    ([*DATA, "--profile", "0"], ["--profile 0", "at least 1"]),
    ([*DATA, "--profiler", "simple"], ["--profiler simple", "use --profile"]),
    ([*DATA, "--run_name", "a"], ["--run_name a", "--wandb PROJECT or --tensorboard 1"]),
    ([*DATA, "--tensorboard", "1", "--run_name", "../a"], ["'../a'", "the name of a folder"]),
    ([*DATA, "--tensorboard", "1", "--run_name", ""], ["--run_name ''", "letters, digits"]),
    ([*DATA, "--ctx_len", "0"], ["--ctx_len 0", "at least 1"]),
    ([*DATA, "--accumulate_grad_batches", "0"], ["--accumulate_grad_batches 0"]),
    ([*DATA, "--devices", "0"], ["--devices 0", "at least 1"]),
    # Would start as many processes, or count for ever.
    ([*DATA, "--devices", "1025"], ["--devices 1025", "at most 1024"]),
    ([*DATA, "--num_nodes", "99999999999999999999"], ["--num_nodes 9999", "at most 100000"]),
    ([*DATA, "--devices", "0,1"], ["--devices 0,1", "CUDA_VISIBLE_DEVICES=0,1"]),
    ([*DATA, "--n_embd", "100"], ["--n_embd 100", "multiple of 32", "96"]),
    ([*DATA, "--dropout", "1"], ["--dropout 1", "below 1"]),
    ([*DATA, "--beta1", "1.0"], ["--beta1 1", "below 1"]),
    ([*DATA, "--lr_init", "nan"], ["--lr_init nan", "finite"]),
    ([*DATA, "--lr_init", "-1"], ["--lr_init -1", "at least 0"]),
    ([*DATA, "--lr_init", "0", "--exit_tokens", "9"], ["--lr_init 0", "--exit_tokens 0"]),
    ([*DATA, "--weight_decay_final", "0.1"], ["--weight_decay_final 0.1", "--weight_decay"]),
    ([*DATA, "--hold_epochs", "2", "--exit_tokens", "9"], ["--hold_epochs 2", "--exit_tokens 9"]),
    ([*DATA, "--hold_epochs", "2", "--epoch_count", "2"], ["--hold_epochs 2", "--epoch_count"]),
    ([*DATA, "--max_steps", "0"], ["--max_steps 0"]),
    ([*DATA, "--rwkv_version", "8"], ["--rwkv_version", "4, 5, 6, 7"]),
    ([*DATA, "--my_testing", "x060a"], ["--my_testing x060a", "x060"]),
    ([*DATA, "--my_testing", "x070", "--head_qk", "256"], ["--head_qk 256", "RWKV-7"]),
    ([*DATA, "--rwkv_version", "6", "--rank_gate", "64"], ["--rank_gate 64", "RWKV-6"]),
    ([*DATA, "--rwkv_version", "7", "--rank_mix", "32"], ["--rank_mix 32", "RWKV-7"]),
    ([*DATA, "--grad_cp", "2"], ["--grad_cp 2", "0 or 1"]),
    ([*DATA, "--pre_ffn", "1"], ["--pre_ffn 1"]),
    ([*DATA, "--my_qa_mask", "1"], ["--my_qa_mask 1", "make_data.py --chat_template"]),
    ([*DATA, "--data_type", "numpy", "--loss_mask", "on"], ["--loss_mask on", "binidx"]),
    ([*DATA, "--data_type", "utf-8", "--reset_at_documents", "1"], ["utf-8", "documents start"]),
    ([*DATA, "--reset_at_documents", "1", "--train_type", "states"], ["--train_type states"]),
    ([*DATA, "--strategy", "fsdp"], ["--strategy fsdp", "deepspeed_stage_2"]),
    ([*DATA, "--compile", "1", "--strategy", "deepspeed_stage_3"], ["--compile 1", "stage_2"]),
    ([*DATA, "--precision", "64"], ["--precision 64", "fp32"]),
    ([*DATA, "--data_type", "wds_img"], ["--data_type wds_img"]),
    (["--data_type", "dummy", *DATA], ["--data_file data/x", "dummy"]),
    ([*DATA, "--data_type", "numpy", "--sampling", "permutation"], ["permutation", "binidx"]),
    ([*DATA, "--sampling", "random", "--sample_offset", "5"], ["--sample_offset 5", "random"]),
    ([*DATA, "--val_every", "10"], ["--val_every 10", "--val_data_file", "--val_split"]),
    ([*DATA, "--save_best", "1"], ["--save_best 1", "--val_data_file"]),
    ([*DATA, "--val_ctx_len", "64"], ["--val_ctx_len 64", "--val_split"]),
    ([*DATA, "--val_split", "0"], ["--val_split 0", "above 0"]),
    ([*DATA, "--val_split", "2.5"], ["--val_split 2.5", "whole number"]),
    ([*DATA, "--val_split", "9", "--val_data_file", "v"], ["--val_data_file v", "--val_split 9"]),
    ([*DATA, "--val_split", "9", "--sampling", "random"], ["--val_split 9", "--sampling random"]),
    ([*DATA, "--val_split", "9", "--data_type", "numpy"], ["--val_split 9", "--data_type numpy"]),
    ([*DATA, "--val_split", "9", "--sample_offset", "5"], ["--val_split 9", "--sample_offset 5"]),
    ([*DATA, "--load_model", "x.pth", "--train_stage", "3"], ["--load_model x.pth", "rwkv-init"]),
    ([*DATA, "--lora_r", "4"], ["--lora_r 4", "--train_type lora"]),
    ([*DATA, "--train_type", "lora", "--lora_r", "0"], ["--lora_r 0", "at least 1"]),
    ([*DATA, "--train_type", "lora", "--lora_dropout", "1"], ["--lora_dropout 1", "below 1"]),
    ([*DATA, "--train_type", "lora", "--lora_train", "ln,tim"], ["'tim'", "time, ln, emb, head"]),
    ([*DATA, "--train_type", "lora", "--lora_targets", ","], ["--lora_targets", "att.key"]),
    ([*DATA, "--my_pile_stage", "2", "--train_stage", "3"], ["--my_pile_stage", "--train_stage"]),
    ([*DATA, "--wandb_mode", "offline"], ["--wandb_mode offline", "--wandb"]),
]


@pytest.fixture
def runs(monkeypatch):
    """Stands in for what comes after the flags and keeps what it is called with."""
    calls = []
    monkeypatch.setattr(training_main, "_run", lambda *call: calls.append(call[:-1]) or 0)
    return calls


@pytest.mark.parametrize(("argv", "words"), WRONG, ids=lambda part: " ".join(part))
def test_it_ends_with_status_2_and_one_clear_line(argv, words, runs, capsys):
    assert train.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and runs == []
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert all(word in err for word in words), err


def test_a_right_command_line_reaches_the_run_with_its_notices(runs, capsys):
    argv = [*DATA, "--my_testing", "x060", "--my_ffn_shift", "1", "--n-layer=3"]
    assert train.main(argv) == 0
    ((config, notices, _),) = runs
    assert (config.model.rwkv_version, config.model.n_layer) == ("6", 3)
    assert notices == ["--my_ffn_shift has no effect in RWKV-LM either"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (ConfigError("first\nsecond"), 2, "error: first; second\n"),
        (TrainingError("the loss is NaN"), 1, "error: the loss is NaN\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_run_raises_becomes_status_and_line(raised, status, message, monkeypatch, capsys):
    def run(config, notices, ranks, began):
        raise raised

    monkeypatch.setattr(training_main, "_run", run)
    assert train.main(DATA) == status
    err = capsys.readouterr().err
    assert err.startswith(message) and err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "word"), [(["--n_layr", "5"], "--n_layer"), (["--my_testing", "x060c"], "x060c")]
)
def test_the_program_itself_ends_with_status_2_and_one_line(argv, word):
    done = subprocess.run(
        [sys.executable, "train.py", *argv], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and word in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_every_flag_and_imports_nothing_heavy():
    code = (
        "import sys, train\n"
        "try:\n"
        "    train.main(['--help'])\n"
        "finally:\n"
        f"    print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    from rwkv_train.config.command_line.fields import fields

    assert all(f"--{name} " in done.stdout for name in (*fields(), "config"))
    # It begins with the flags of the README's example, in that order.
    example = (
        (ROOT / "README.md").read_text().partition("python train.py ")[2].partition("python ")[0]
    )
    flags = [word for word in example.split() if word.startswith("--")]
    listed = [line.split()[0] for line in done.stdout.splitlines()[1 : len(flags) + 1]]
    assert listed == flags


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("rwkv_train.training", "rwkv-train"),
        ("rwkv_train.data", "rwkv-data"),
        ("rwkv_train.inference", "rwkv-generate"),
        ("rwkv_train.evaluation", "rwkv-eval"),
        ("rwkv_train.inference.chat", "rwkv-chat"),
        ("rwkv_train.export", "rwkv-export"),
        ("rwkv_train.report", "rwkv-report"),
        ("rwkv_train.verification", "rwkv-verify"),
    ],
)
def test_an_installed_command_names_itself(program, command, monkeypatch, capsys):
    main = importlib.import_module(f"{program}.__main__").main
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{command}", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert f"usage: {command} " in capsys.readouterr().out


def test_a_wrong_flag_is_refused_before_anything_heavy_is_imported():
    code = (
        "import sys, train\n"
        "status = train.main(['--data_file', 'x', '--micro_bsz', '0'])\n"
        f"print(status, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 []\n"
