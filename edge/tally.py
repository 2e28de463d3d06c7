"""What is counted of one version from the start of the agent to its end, whatever its instances go through.

Plain integers that whoever does the thing adds to; a version that is loaded again goes on counting. Not here: names and
texts of metrics (``edge.metrics``), requests at the doors (``mesh.tally``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.tally import Histogram

if TYPE_CHECKING:
    from edge.served import Item

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(slots=True, eq=False)
class Tally:
    """Inferences of the watchdog count too, those of a warm-up do not."""

    run_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    """Rows of the runs that succeeded."""
    run_seconds: float = 0.0
    """Time of those runs, all together."""
    queue_seconds: Histogram = field(default_factory=Histogram)
    """From admission to the begin of the run, of the inferences that were answered."""
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

    def ran(self, rows: int, seconds: float, began: float, items: Iterable[Item]) -> None:
        """A run succeeded that ``began`` at that monotonic second, for those inferences."""
        self.run_rows.observe(rows)
        self.run_seconds += seconds
        for item in items:
            self.queue_seconds.observe(began - item.arrived)

    def expired(self, *, queued: bool) -> None:
        """The deadline of an inference passed."""
        if queued:
            self.expired_queued += 1
        else:
            self.expired_running += 1
