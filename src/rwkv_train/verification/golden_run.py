"""A tiny training run by the trainer itself, from flags to the last weights.

Its settings are chosen so that whatever a run does moves its curve: rates so large that the loss
falls within some steps, decays that change, a warmup, a gradient that is clipped in some steps and
not in others, documents inside of rows, accumulation, rows that are read in chunks.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rwkv_train.checkpoint.names import FINAL, INIT
from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.load import load_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.data.binidx.writer import BinidxWriter
from rwkv_train.report.run_records import read_metrics
from rwkv_train.training.distributed.file_transfer import ReceivedFiles
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.start.prepare import prepare_run
from rwkv_train.training.start.run_lock import RunLock
from rwkv_train.training.start.state_copies import StateCopies
from rwkv_train.verification.fixed_numbers import FixedNumbers

GOLDEN_STEPS = 8
GOLDEN_CTX_LEN = 32
GOLDEN_VOCABULARY = 64
_ROWS_OF_A_STEP = 4
_DOCUMENTS = 120
_SETTINGS: dict[str, object] = {
    "n_layer": 2,
    "n_embd": 64,
    "vocab_size": GOLDEN_VOCABULARY,
    "ctx_len": GOLDEN_CTX_LEN,
    "chunk_len": 13,
    "micro_bsz": 2,
    "accumulate_grad_batches": 2,
    "reset_at_documents": 1,
    "exit_tokens": GOLDEN_STEPS * _ROWS_OF_A_STEP * GOLDEN_CTX_LEN,
    "epoch_steps": 100,
    "epoch_save": 0,
    "save_every_minutes": 0,
    "lr_init": 4e-3,
    "lr_final": 4e-4,
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "weight_decay_final": 0.01,
    "grad_clip": 7.0,
    "random_seed": 7,
    "devices": 1,
    "strategy": "auto",
    "precision": "fp32",
    "num_workers": 0,
    "plot": 0,
    "enable_progress_bar": 0,
}


class GoldenRun(NamedTuple):
    """The traces of a run.

    config: resolved.  steps: a record each, as metrics.jsonl has them.  first, last: the weights
    before the first and after the last step.
    """

    config: ResolvedConfig
    steps: list[dict[str, Any]]
    first: dict[str, Tensor]
    last: dict[str, Tensor]


def run_golden(version: str, *, accelerator: str = "cpu", wkv_backend: str = "auto") -> GoldenRun:
    """Trains a model of this version in a folder of its own, which is removed; returns its traces.

    accelerator: "cpu" or "gpu".  Prints nothing. Raises TrainerError.
    """
    with tempfile.TemporaryDirectory(prefix="rwkv-verify-") as name, _undisturbed():
        folder = Path(name)
        write_documents(folder / "data")
        settings = _SETTINGS | {
            "proj_dir": folder / "run",
            "data_file": folder / "data",
            "rwkv_version": version,
            "wkv_backend": wkv_backend,
            "accelerator": accelerator,
            **({} if version == "4" else {"head_size": 32}),
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        config = _train(words)
        records = [r for r in read_metrics(folder / "run") if "grad_norm" in r]
        first, last = (load_weights(folder / "run" / file, torch.float32) for file in (INIT, FINAL))
        return GoldenRun(config, records, first, last)


def write_documents(prefix: Path) -> None:
    """Writes a pair of short documents in which a token tells much about the next one."""
    draws = FixedNumbers(11)
    lengths = (7 + draws.integers(40, _DOCUMENTS)).tolist()
    with BinidxWriter(prefix, "uint16") as writer:
        for length in lengths:
            noise = draws.integers(5, length).tolist()
            tokens = [int(draws.integers(GOLDEN_VOCABULARY, 1))]
            for step in noise[1:]:
                tokens.append((5 * tokens[-1] + step + 1) % GOLDEN_VOCABULARY)
            writer.append(tokens)


def _train(words: list[str]) -> ResolvedConfig:
    """Does what `rwkv-train` does with these words, as the only process whatever started it."""
    given = load_config(words)
    check_fields(given)
    ranks = Ranks(Launch("rwkv-verify"), words)

    def body(ranks: Ranks) -> int:
        with (
            RunLock(Path(given.train.proj_dir)) as lock,
            StateCopies(given, ranks) as copies,
            ReceivedFiles() as received,
        ):
            prepared = prepare_run(given, [], lock, ranks, received, copies)
            assert prepared is not None, "this is no stage 1"
            found.append(prepared.config)
            # Lightning reads when it is imported what `prepare_run` sets.
            from rwkv_train.training.run import run

            return run(prepared, ranks, received, time.perf_counter())

    found: list[ResolvedConfig] = []
    status = ranks.run(body)
    assert status == 0, f"the run ended with status {status}"
    return found[0]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets a run print nothing, and puts back what it changes in this process."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
