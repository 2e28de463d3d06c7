"""A deadline: the instant by which a request must be answered, on this process's monotonic clock (DESIGN D10).

Between machines only the milliseconds that are left travel, never an instant. Not here: timers (whoever holds a
request owns its timer) and timeouts of single steps.
"""

from __future__ import annotations

import time
from math import inf

import msgspec

from mesh.errors import DeadlineExceeded

MAX_MS = 86_400_000.0
"""A day: the longest budget a request may ask for; longer ones are clamped."""


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """``at`` is in seconds of :func:`time.monotonic`, the clock that asyncio loops use too."""

    at: float
    recall_at: float = inf
    """From then on it is too late to answer elsewhere: who holds the request in a queue until then, and will not be in
    time, gives it back."""

    def with_recall(self, elsewhere_ms: float) -> Deadline:
        """The same deadline, for a request that another place could answer in so long."""
        return Deadline(self.at, self.at - elsewhere_ms / 1e3)

    @property
    def recall_ms(self) -> float:
        """What another place would need; 0 where there is none."""
        return (self.at - self.recall_at) * 1e3 if self.recall_at < inf else 0.0

    @classmethod
    def after_ms(cls, budget_ms: float) -> Deadline:
        return cls(time.monotonic() + min(max(budget_ms, 0.0), MAX_MS) / 1e3)

    def at_most_ms(self, budget_ms: float) -> Deadline:
        """For a part of the work that may take so long: the earlier of the two."""
        return Deadline(min(self.at, Deadline.after_ms(budget_ms).at))

    def left_s(self) -> float:
        """Seconds left, negative once expired."""
        return self.at - time.monotonic()

    def left_ms(self) -> float:
        return self.left_s() * 1e3

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raise :class:`DeadlineExceeded` if nothing is left: late work is never run."""
        if self.expired:
            raise DeadlineExceeded("the deadline passed before the request could be run")
