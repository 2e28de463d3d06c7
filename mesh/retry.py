"""May a failed request be tried elsewhere? The budget that keeps retries from multiplying an overload (DESIGN D16).

Three purses: what a node refused was never started and costs nothing; what was in flight to a node that died may all be
tried again, once per death; everything else stays under a tenth of the requests. Pure: ``now`` (seconds of a monotonic
clock) is an argument. Not here: where to try next (``balancer``), how many attempts one request may make and whether
its deadline allows another (the router), back-off.
"""

from __future__ import annotations

from mesh.errors import BusUnavailable, InstanceLost, MeshError, NodeLost

LOST = (NodeLost, InstanceLost, BusUnavailable)
"""Errors of requests that died with what carried or ran them: many at once, through no fault of their own."""

SLOTS = 10
"""Resolution of the sliding window: it moves on by a tenth of its length."""


class Window:
    """A count over the last ``span_s`` seconds, in ``SLOTS`` slots; the current slot is a part of it."""

    def __init__(self, span_s: float) -> None:
        self._width_s = span_s / SLOTS
        self._counts = [0] * SLOTS
        self._slot = 0
        self._total = 0

    def add(self, now: float) -> None:
        self._advance(now)
        self._counts[self._slot % SLOTS] += 1
        self._total += 1

    def total(self, now: float) -> int:
        self._advance(now)
        return self._total

    def _advance(self, now: float) -> None:
        slot = int(now / self._width_s)
        for passed in range(max(self._slot + 1, slot - SLOTS + 1), slot + 1):
            self._total -= self._counts[passed % SLOTS]
            self._counts[passed % SLOTS] = 0
        self._slot = max(slot, self._slot)


class RetryBudget:
    """One router's allowance of retries.

    In any window of ``window_s`` seconds at most ``ratio`` of the requests are retried, but always ``minimum``: a quiet
    client whose only request fails may try once more. A ``ratio`` of 0 allows none but of what was refused.
    """

    def __init__(self, ratio: float = 0.10, *, window_s: float = 10.0, minimum: int = 1) -> None:
        self._ratio = ratio
        self._window_s = window_s
        self._minimum = minimum
        self._requests = Window(window_s)
        self._retries = Window(window_s)
        self._lost: dict[str, tuple[int, float]] = {}
        """Per lost node: retries left, and when they lapse."""

    def note_request(self, now: float) -> None:
        """A caller's request came in; its retries are not requests."""
        self._requests.add(now)

    def note_lost(self, in_flight: int, now: float, node: str = "") -> None:
        """The connection to ``node`` broke with ``in_flight`` requests on it: that many retries are allowed.

        It lapses after ``window_s``. May be called once per death or once per request that died: the bucket of a node
        is raised to ``in_flight``, never by it.
        """
        left, until = self._lost.get(node, (0, now))
        if until <= now:
            left = 0
        if in_flight > left:
            left, until = in_flight, now + self._window_s
        if left > 0:
            self._lost[node] = (left, until)

    def may_retry(self, error: MeshError, now: float) -> bool:
        """Whether a request that failed with ``error`` may be tried elsewhere; a yes is paid for at once."""
        if not error.retryable:
            return False
        if error.refused:
            return True
        if self._ratio == 0.0:
            return False
        if isinstance(error, LOST) and self._draw_lost(now):
            return True
        allowed = max(self._minimum, int(self._ratio * self._requests.total(now)))
        if self._retries.total(now) >= allowed:
            return False
        self._retries.add(now)
        return True

    def _draw_lost(self, now: float) -> bool:
        for node, (left, until) in list(self._lost.items()):
            if left > 1 and until > now:
                self._lost[node] = (left - 1, until)
                return True
            del self._lost[node]
            if until > now:
                return True
        return False
