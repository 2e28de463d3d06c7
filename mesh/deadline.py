"""A deadline: the instant by which a request must be answered, on this process's monotonic clock (DESIGN D10).

Between machines only the milliseconds that are left travel, never an instant. Not here: timers (whoever holds a
request owns its timer) and timeouts of single steps.
"""

from __future__ import annotations

import time

import msgspec

from mesh.errors import DeadlineExceeded

MAX_MS = 86_400_000.0
"""A day: the longest budget a request may ask for; longer ones are clamped."""


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """``at`` is in seconds of :func:`time.monotonic`, the clock that asyncio loops use too."""

    at: float

    @classmethod
    def after_ms(cls, budget_ms: float) -> Deadline:
        return cls(time.monotonic() + min(max(budget_ms, 0.0), MAX_MS) / 1e3)

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
