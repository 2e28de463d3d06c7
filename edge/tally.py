"""What is counted of one version from the start of the agent to its end, whatever its instances go through.

Plain integers that whoever does the thing adds to; a version that is loaded again goes on counting. Not here: names and
texts of metrics (``edge.metrics``), requests at the doors (``mesh.tally``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.tally import Histogram

if TYPE_CHECKING:
    from edge.served import Item
    from edge.streaming import Going

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
MOST_SIZES = 256


@dataclass(slots=True, eq=False)
class Tally:
    """Inferences of the watchdog count too, those of a warm-up do not."""

    run_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    """Rows of the runs that succeeded."""
    run_seconds: float = 0.0
    """Time of those runs, all together."""
    queue_seconds: Histogram = field(default_factory=Histogram)
    """From admission to the begin of the run, of the inferences that were answered."""
    runs_by_rows: dict[int, list[float]] = field(default_factory=dict)
    """How many runs there were of exactly so many rows, and their seconds; of the first ``MOST_SIZES`` sizes."""
    waited_seconds: float = 0.0
    """Time of its run for each inference that was answered, all together."""
    answered: int = 0
    """Requests that were answered, and their seconds from arrival to answer; the watchdog's do not count."""
    answered_seconds: float = 0.0
    failed: int = 0
    """Requests that were not, for whatever reason but that their caller left."""
    failed_seconds: float = 0.0
    last_answer_ms: int = 0
    """Milliseconds since the epoch; 0 is never."""
    runs_failed: int = 0
    queue_full: int = 0
    """Inferences refused because too many waited."""
    late: int = 0
    """Inferences refused because they would have been answered after their deadline."""
    dropped: int = 0
    """Inferences given up in the queue so that others are in time."""
    expired_queued: int = 0
    expired_running: int = 0
    worker_deaths: int = 0
    """Ends of its worker of which it was, or may have been, the cause."""
    quarantines: int = 0
    backend_failures: Counter[str] = field(default_factory=Counter)
    """Backends that could not be had while it was loaded."""

    def ran(self, rows: int, seconds: float, began: float, items: Iterable[Item | Going]) -> None:
        """A run succeeded that ``began`` at that monotonic second, for those inferences."""
        self.run_rows.observe(rows)
        self.run_seconds += seconds
        known = self.runs_by_rows.get(rows)
        if known is not None:
            known[0] += 1
            known[1] += seconds
        elif len(self.runs_by_rows) < MOST_SIZES:
            self.runs_by_rows[rows] = [1, seconds]
        for item in items:
            self.waited_seconds += seconds
            self.queue_seconds.observe(began - item.arrived)

    def request(self, seconds: float, *, answered: bool) -> None:
        """A request of somebody ended that came so many seconds ago."""
        if answered:
            self.answered += 1
            self.answered_seconds += seconds
            self.last_answer_ms = time.time_ns() // 1_000_000
        else:
            self.failed += 1
            self.failed_seconds += seconds

    def expired(self, *, queued: bool) -> None:
        """The deadline of an inference passed."""
        if queued:
            self.expired_queued += 1
        else:
            self.expired_running += 1
