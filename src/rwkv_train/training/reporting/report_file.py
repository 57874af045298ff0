"""proj_dir/report.html: everything that is known of the run, as a page for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from rwkv_train.report.page_file import REPORT_FILE
from rwkv_train.report.run_page import RunPage
from rwkv_train.training.reporting.records import EpochRecord
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

# So many times what the last page took pass before the next: at most 2 % of the time is spent.
_PATIENCE = 50


class ReportFile(Reporter):
    """Renews report.html at every mini-epoch and validation, not too often, and at the end.

    clock: seconds.
    """

    label = REPORT_FILE

    def __init__(self, folder: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        self._page = RunPage(folder)
        self._clock = clock
        self._took = 0.0
        self._ended: float | None = None

    def on_epoch(self, record: EpochRecord) -> None:
        """Renews the page."""
        self._renew_if_due()

    def on_validation(self, record: ValidationRecord) -> None:
        """Renews the page."""
        self._renew_if_due()

    def close(self) -> None:
        """Renews the page a last time."""
        self._page.write()

    def _renew_if_due(self) -> None:
        began = self._clock()
        if self._ended is not None and began - self._ended < _PATIENCE * self._took:
            return
        try:
            self._page.write()
        finally:
            self._ended = self._clock()
            self._took = self._ended - began
