"""When a request may be sent to a second place beside the first: hedging, only where its caller asks for it.

After what was predicted and twice the usual error: sooner it would double the load, and later than the second place
needs it would be of no use. Pure: ``now`` (seconds of a monotonic clock) is an argument. Not here: sending both
(``router``), which place is the second (``balancer``).
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.estimator import Estimate
from mesh.retry import Window

PARAMETER = "mesh_hedge"
"""Of a request: true asks for it."""
SIGMAS = 2.0
LEAST_MS = 1.0
SHARE = 0.02
"""Of the requests of the last ``SPAN_S`` seconds, asked for or not, that may be sent twice; one always may."""
SPAN_S = 10.0


def wants(parameters: Mapping[str, object]) -> bool:
    """Whether a request asks for it; a step of a sequence would be done twice."""
    return parameters.get(PARAMETER) is True and not parameters.get("sequence_id")


def after_ms(predicted: Estimate, left_ms: float, other_ms: float) -> float | None:
    """How long after sending the second try is due; None where it never is.

    ``left_ms`` is until the deadline, ``other_ms`` what the best other place would need; 0 where there is none.
    """
    due_ms = max(predicted.total_ms + SIGMAS * predicted.sigma_ms, LEAST_MS)
    return due_ms if 0.0 < other_ms <= left_ms - due_ms else None


class Hedges:
    """One router's allowance."""

    def __init__(self) -> None:
        self._requests = Window(SPAN_S)
        self._spent = Window(SPAN_S)

    def note_request(self, now: float) -> None:
        """A caller's request came in."""
        self._requests.add(now)

    def may(self, now: float) -> bool:
        """Whether another may be sent twice; a yes is paid for at once."""
        if self._spent.total(now) >= max(1, int(SHARE * self._requests.total(now))):
            return False
        self._spent.add(now)
        return True
