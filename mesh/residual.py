"""How far a node's answers were from what was predicted: the error's mean and spread, and a peak-sensitive average.

Pure: ``now`` (seconds of a monotonic clock) is an argument. Not here: predictions themselves (``estimator``).
"""

from __future__ import annotations

from math import exp

LEARN = 0.05
"""Weight of a new error."""
FADE_S = 5.0
"""Time constant with which the mean error and its spread fade while nothing is learned: a node that was slow is tried
again."""
LOWEST_MS = -20.0
"""A node is not believed to be faster than its reports by more than that."""
CLIP = 2.0
"""No error counts for more than this many times what the caller gave."""
PEAK_S = 10.0
"""Time constant of the peak-sensitive average, as in Finagle's load balancer."""


class Residual:
    """Of one node, as one router saw it."""

    __slots__ = ("_at_s", "_bias_ms", "_peak_ms", "_sigma_ms")

    def __init__(self) -> None:
        self._bias_ms = 0.0
        self._sigma_ms = 0.0
        self._peak_ms = 0.0
        self._at_s = 0.0

    def learn(self, seen_ms: float, predicted_ms: float, given_ms: float, now: float) -> None:
        """``predicted_ms`` is without the bias; ``given_ms`` the whole time that the caller gave for the answer."""
        error = min(seen_ms - predicted_ms, CLIP * given_ms)
        bias, sigma = self.bias_ms(now), self.sigma_ms(now)
        self._bias_ms = max(bias + LEARN * (error - bias), LOWEST_MS)
        self._sigma_ms = sigma + LEARN * (abs(error) - sigma)
        kept = exp(-max(now - self._at_s, 0.0) / PEAK_S)
        decayed = self._peak_ms * kept + seen_ms * (1.0 - kept)
        self._peak_ms = seen_ms if seen_ms > self._peak_ms else decayed
        self._at_s = now

    def bias_ms(self, now: float) -> float:
        """Mean error."""
        return self._bias_ms * exp(-max(now - self._at_s, 0.0) / FADE_S)

    def sigma_ms(self, now: float) -> float:
        """Mean size of the errors."""
        return self._sigma_ms * exp(-max(now - self._at_s, 0.0) / FADE_S)

    def peak_ms(self, now: float) -> float:
        """A slow answer is believed at once, and fades."""
        return self._peak_ms * exp(-max(now - self._at_s, 0.0) / PEAK_S)
