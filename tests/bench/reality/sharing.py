"""A wire that all transfers on it share alike, as TCP connections do: the simulator's own carry one after the other.

Of ten requests sent at once a wire in turn carries four in time where one that is shared carries none, so a simulation
beside real connections needs this. Virtual time comes from the caller. Not here: delays, who sends what.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf


class SharedWire:
    """``rate`` is in bytes per second; ``arrived`` is called with each transfer whose last byte is through."""

    def __init__(self, rate: float, arrived: Callable[[object], None]) -> None:
        self.carried = 0.0
        """Bytes."""
        self._rate = rate
        self._arrived = arrived
        self._left: dict[object, float] = {}
        self._at_s = 0.0

    def begin(self, transfer: object, nbytes: float, now: float) -> None:
        """``transfer`` names it, and must differ from all others under way."""
        self.advance(now)
        self._left[transfer] = nbytes

    def give_up(self, transfer: object, now: float) -> None:
        """Its sender stops; nothing happens if it is through."""
        self.advance(now)
        self._left.pop(transfer, None)

    def advance(self, now: float) -> None:
        """Carry until then, and tell of what is through."""
        while self._left and (end := self.next_s()) <= now:
            self._carry(end)
            through = [transfer for transfer, left in self._left.items() if left <= 1e-6]
            for transfer in through:
                del self._left[transfer]
            for transfer in through:
                self._arrived(transfer)
        self._carry(now)

    def next_s(self) -> float:
        """When the next transfer is through, if none begins or stops before."""
        return self._at_s + min(self._left.values()) * len(self._left) / self._rate if self._left else inf

    def _carry(self, until: float) -> None:
        if self._left:
            each = min((until - self._at_s) * self._rate / len(self._left), min(self._left.values()))
            for transfer in self._left:
                left = self._left[transfer] - each
                self._left[transfer] = left if left > 1e-3 else 0.0
            self.carried += each * len(self._left)
        self._at_s = max(self._at_s, until)
