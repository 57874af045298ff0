"""Shows a progress bar, or a line per mini-epoch where there is no terminal."""

from __future__ import annotations

import statistics
import sys

from tqdm import tqdm

from rwkv_train.goodput import goodput_line
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    EpochRecord,
    LivesRecord,
    RollbackRecord,
    SlowRanksRecord,
    StepRecord,
)
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

# Finetuning data may have thousands of them.
MOST_EMPTY_STEPS_NAMED = 3
# Shares of a mini-epoch below it are no news.
_WORTH_TELLING = 0.01
# field of a step's record -> words
_WAITS = {
    "data_share": "waiting for data",
    "communication_share": "waiting for ranks",
    "save_share": "saving",
    "validation_share": "validation",
}


class Console(Reporter):
    """A bar over the whole run with loss (mean of the mini-epoch), rate and tokens per second."""

    label = "the terminal"

    def __init__(self, first_step: int, total_steps: int | None, *, bar: bool) -> None:
        # \r on a log file makes one endless line
        show = bar and sys.stderr.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not show,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.1,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_fmt}]{postfix}"
            if total_steps
            else None,
        )
        self._total = total_steps
        self._empty_steps = 0
        self._speed = 0.0
        self._loop_shares: list[float] = []
        self._seconds = 0.0
        self._mfu: list[float] = []
        self._waited = dict.fromkeys(_WAITS, 0.0)
        self._has_doubted = False

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Moves the bar."""
        # Averaged for the eye; metrics.jsonl has every step's own rate.
        keep = 0.9 if self._speed else 0.0
        self._speed = keep * self._speed + (1 - keep) * record.tokens_per_second
        if record.loop_share is not None:
            self._loop_shares.append(record.loop_share)
        self._seconds += record.seconds
        for name in _WAITS:
            self._waited[name] += (getattr(record, name) or 0.0) * record.seconds
        used = ""
        if record.mfu is not None:
            self._mfu.append(record.mfu)
            used = f", MFU {record.mfu:.0%}"
        self._bar.set_postfix_str(
            f"loss {progress.epoch_loss:.4f}, lr {record.lr:.3g}, "
            f"{self._speed / 1000:.2f} kt/s{used}",
            refresh=False,
        )
        self._bar.update()

    def on_epoch(self, record: EpochRecord) -> None:
        """Prints a line that stays."""
        total = f"/{self._total}" if self._total else ""
        self._say(
            f"mini-epoch {record.epoch}: step {record.last.step + 1}{total}, "
            f"loss {record.mean_loss:.4f}, lr {record.last.lr:.3g}, "
            f"{record.last.tokens:,} tokens, {self._speed / 1000:.2f} kt/s"
            f"{self._where_time_went()}"
        )

    def on_bad_step(self, record: BadStepRecord) -> None:
        """Prints a line that stays."""
        first, last = record.samples
        suspects = ", ".join(map(str, record.suspects))
        self._bar.update()
        self._say(
            f"WARNING: step {record.step + 1} skipped: {record.skipped}; samples {first} to "
            f"{last}" + (f", suspect: {suspects}" if suspects else "")
        )

    def on_empty_step(self, record: EmptyStepRecord) -> None:
        """Moves the bar, and prints a line for each of the first few."""
        self._bar.update()
        self._empty_steps += 1
        if self._empty_steps <= MOST_EMPTY_STEPS_NAMED:
            first, last = record.samples
            number = record.step + 1
            self._say(f"step {number} skipped, {record.skipped} of samples {first} to {last}")

    def on_rollback(self, record: RollbackRecord) -> None:
        """Prints a line that stays."""
        first, last = record.left_out
        self._say(
            f"WARNING: went back to {record.rollback} after step {record.step + 1}; resumes "
            f"behind samples {first} to {last}"
        )

    def on_slow_ranks(self, record: SlowRanksRecord) -> None:
        """Prints a line a machine, which stays."""
        for line in record.slow:
            self._say(f"WARNING: after step {record.step + 1}: {line}")
        if not record.slow:
            self._say(f"after step {record.step + 1} no machine is slow any more")

    def on_validation(self, record: ValidationRecord) -> None:
        """Prints the losses, by position and by source too, on lines that stay."""
        bits = record.bits_per_byte
        self._say(
            f"validation after step {record.step + 1}: loss {record.loss:.4f}, perplexity "
            f"{record.perplexity:.4g}"
            + ("" if bits is None else f", {bits:.4f} bits per byte")
            + (", the best so far" if record.is_best else "")
        )
        self._say(
            "  by tokens read before: "
            + "  ".join(f"{part.name} {part.loss:.3f}" for part in record.by_position)
        )
        if record.by_source:
            self._say(
                "  by source: "
                + ", ".join(f"{name} {loss:.4f}" for name, loss in record.by_source.items())
            )

    def on_tasks(self, record: TaskRecord) -> None:
        """Prints the figures, a line a task, on lines that stay."""
        self._say(f"tasks after step {record.step + 1}:")
        for name, figures in record.tasks.items():
            shown = (
                f"{metric} {value:.4g}"
                + (f" ± {error:.2g}" if (error := figures.get(f"{metric}_stderr")) else "")
                for metric, value in figures.items()
                if not metric.endswith("_stderr")
            )
            self._say(f"  {name}: {', '.join(shown)}")

    def on_samples(self, record: SampleRecord) -> None:
        """Prints the texts on lines that stay, and says loudly when the logits disagree."""
        for number, sample in enumerate(record.samples, 1):
            of = f" {number} of {len(record.samples)}" if len(record.samples) > 1 else ""
            self._say(f"--- sample{of} after step {record.step + 1}")
            self._say(_visible(sample.prompt + sample.text))
        self._say("---")
        if not record.agrees:
            self._say(
                "WARNING: the model says something else token by token than all at once: their "
                f"logits differ by {record.logit_difference:.2g} of their size, where rounding "
                f"explains {record.logit_limit:.2g}; what is trained is not what will be used. "
                "Compare with --wkv_backend reference"
            )

    def on_save_postponed(self, step: int) -> None:
        """Prints a line that stays."""
        self._say(f"the save after step {step} waits until steps are good again")

    def on_save(self, path: str) -> None:
        """Prints a line that stays."""
        self._say(f"saved {path}")

    def on_lives(self, record: LivesRecord) -> None:
        """Prints goodput, and where the rest of the time went, on a line that stays."""
        self._say(goodput_line(record.seconds, record.lives, record.lost_steps))

    def close(self) -> None:
        """Ends the bar; says how many empty steps there were when not all were named."""
        if self._empty_steps > MOST_EMPTY_STEPS_NAMED:
            self._say(
                f"{self._empty_steps} steps were skipped as empty: the loss mask counted no token; "
                "a larger batch has more"
            )
        self._bar.close()

    def _where_time_went(self) -> str:
        """Returns what the mini-epoch's time went into, and forgets it."""
        told = ""
        # Middle ones: a step that waits for the disk is not what the loop costs.
        if self._mfu:
            mfu = statistics.median(self._mfu)
            told += f", MFU {mfu:.1%}"
            if mfu > 1 and not self._has_doubted:
                self._has_doubted = True
                self._say(
                    "note: an MFU above 100% says that the machine was busy when its rate was "
                    "measured; --measure_rate 1 measures it anew"
                )
        if self._loop_shares:
            told += f", loop {statistics.median(self._loop_shares):.1%} of a step"
        for name, words in _WAITS.items():
            share = self._waited[name] / self._seconds if self._seconds else 0.0
            told += f", {words} {share:.0%}" if share >= _WORTH_TELLING else ""
            self._waited[name] = 0.0
        self._loop_shares.clear()
        self._mfu.clear()
        self._seconds = 0.0
        return told

    def _say(self, line: str) -> None:
        # Else the line would be written into the bar.
        with self._bar.external_write_mode(file=sys.stdout):
            print(line, flush=True)


def _visible(text: str) -> str:
    """Returns a text without what would move the cursor or colour the screen."""
    lost = "\N{REPLACEMENT CHARACTER}"
    return "".join(c if c.isprintable() or c in "\n\t" else lost for c in text)
