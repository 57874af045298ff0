"""Asks the model while it trains: tasks of lm-eval, and samples of text.

Both leave training as it is, bit for bit: nothing is drawn from a generator that it uses.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as pl
import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import short_reason
from rwkv_train.evaluation.agreement import AGREEMENT_LIMITS, logit_difference
from rwkv_train.evaluation.decoding import Request, write_continuations
from rwkv_train.evaluation.questions import in_front
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.inference.sampling import SamplingOptions
from rwkv_train.models.backbone import RWKV
from rwkv_train.training.live.live_plan import LivePlan
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord, WrittenSample
from rwkv_train.training.live.rank_zero_work import Found, on_rank_zero

SAMPLING = SamplingOptions(temperature=1.0, top_p=0.7)


class _LeftOffError(Exception):
    """The run was asked to stop in the middle."""


class LiveQuestions:
    """Asks the model what a plan holds.

    is_asked_to_stop: tells whether the run is to leave; what is under way is then left off.
    """

    def __init__(
        self, config: ResolvedConfig, plan: LivePlan, is_asked_to_stop: Callable[[], bool]
    ) -> None:
        self._config = config
        self._plan = plan
        self._is_asked_to_stop = is_asked_to_stop

    def evaluate(self, trainer: pl.Trainer, model: RWKV, step: int) -> TaskRecord | None:
        """Returns the figures of the tasks after optimizer step `step`, from 0. Collective.

        None on the other ranks, without tasks, and where they could not be run, which is told.
        """
        if self._config.log.eval_tasks is None:
            return None

        def work() -> TaskRecord:
            runs, tokenizer = self._plan.runs, self._plan.tokenizer
            assert runs is not None and tokenizer is not None, "rank zero has them"
            with _random_states_kept():
                found = runs.run(self._scorer(model), tokenizer)
            return TaskRecord(step, {name: task.figures for name, task in found.tasks.items()})

        return self._asked(trainer, model, work, f"the tasks after step {step + 1}")

    def sample(self, trainer: pl.Trainer, model: RWKV, step: int) -> SampleRecord | None:
        """Returns what the model writes behind the prompts after step `step`. Collective.

        None as for `evaluate`.
        """

        def work() -> SampleRecord:
            return self._written(model, step)

        return self._asked(trainer, model, work, f"the samples after step {step + 1}")

    def close(self) -> None:
        """Removes what was kept for the tasks."""
        self._plan.close()

    def _written(self, model: RWKV, step: int) -> SampleRecord:
        config, tokenizer = self._config, self._plan.tokenizer
        assert tokenizer is not None, "rank zero has it"
        has_end = tokenizer.end_of_document is not None
        contexts = [in_front(tokenizer.encode(p), has_end) for p in self._plan.prompts]
        requests = [
            Request(context, max_tokens=config.log.sample_tokens, options=SAMPLING)
            for context in contexts
        ]
        writers = write_continuations(
            self._scorer(model), tokenizer, requests, seed=config.train.random_seed
        )
        pairs = zip(self._plan.prompts, writers)
        return SampleRecord(
            step,
            tuple(WrittenSample(prompt, writer.text) for prompt, writer in pairs),
            logit_difference(model, [*contexts[0], *writers[0].tokens]),
            AGREEMENT_LIMITS[config.hardware.precision],
        )

    def _scorer(self, model: RWKV) -> Scorer:
        """Returns a scorer whose batches take no more memory than those of training."""
        config = self._config
        return Scorer(
            model,
            batch_size=config.train.micro_bsz,
            chunk_len=config.train.chunk_len or config.data.ctx_len,
            pulse=self._leave_off,
        )

    def _leave_off(self) -> None:
        if self._is_asked_to_stop():
            raise _LeftOffError

    def _asked(
        self, trainer: pl.Trainer, model: RWKV, work: Callable[[], Found], what: str
    ) -> Found | None:
        try:
            return on_rank_zero(trainer, model, work)
        except _LeftOffError:
            print(f"left off {what}: asked to stop", file=sys.stderr, flush=True)
        # Anything: what a task's own code raises is no reason to lose a run.
        except Exception as error:
            print(
                f"\nWARNING: {what} failed: {short_reason(error)}; training continues",
                file=sys.stderr,
                flush=True,
            )
        return None


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Gives the process's generators back as they were: the code of a task may draw from them."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
