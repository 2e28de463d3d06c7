"""Prequal's pool of probes and its hot-cold rule (Wydrowski et al., NSDI 2024, arXiv 2312.10172), over slots.

A probe's answer is the number in flight that a node told of; how slow a node is, is asked for by a function, so that
the pool knows neither reports nor networks. Pure: moments (seconds of a monotonic clock) and the source of luck are
arguments. Not here: what a latency is, and the decision (``rules``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

HEARD = 128
"""Newest probes of which the distribution of numbers in flight is taken."""
LARGEST_REUSE = 16.0
"""Where the formula of the reuse has no answer, its divisor being 0 or less."""


@dataclass(slots=True)
class Probe:
    """One probe's answer; ``in_flight`` grows with our own sends, ``uses`` is what is left of its reuse."""

    slot: int
    at_s: float
    in_flight: float
    uses: int


Latency = Callable[[Probe], float]


@dataclass(frozen=True, slots=True)
class Dials:
    """The paper's, by their names there: r_probe, m, age limit, r_remove, Q_RIF and δ.

    The published reuse takes many more than m replicas for granted; with fewer, m is lowered to ``share`` of them.
    """

    probes: float = 3.0
    pool: int = 16
    age_s: float = 1.0
    remove: float = 1.0
    quantile: float = 2**-0.25
    delta: float = 1.0
    share: float = 0.5

    def most(self, replicas: int) -> int:
        """Size of the pool."""
        return max(min(self.pool, int(self.share * replicas)), 2)

    def reuse(self, replicas: int) -> float:
        """How often a probe may be used: max(1, (1 + δ) / ((1 - m/n) · r_probe - r_remove))."""
        rest = (1.0 - self.most(replicas) / replicas) * self.probes - self.remove
        return LARGEST_REUSE if rest <= 0.0 else min(max(1.0, (1.0 + self.delta) / rest), LARGEST_REUSE)


class Pool:
    """The probes of one router. A slot is in it once: its newer probe replaces the older."""

    def __init__(self, dials: Dials) -> None:
        self.probes: list[Probe] = []
        self._dials = dials
        self._heard: deque[float] = deque(maxlen=HEARD)
        self._oldest_next = True

    def expire(self, usable: Sequence[int], now: float) -> None:
        """Drop what is too old, and nodes that cannot be asked now."""
        known = set(usable)
        self.probes = [p for p in self.probes if p.slot in known and now - p.at_s <= self._dials.age_s]

    def pick(self, latency: Latency) -> Probe | None:
        """The lowest latency among the cold, those with at most θ in flight; without any, the fewest in flight.

        None with fewer than two probes: then the paper draws a replica at random.
        """
        if len(self.probes) < 2:
            return None
        limit = self._limit()
        cold = [probe for probe in self.probes if probe.in_flight <= limit]
        return min(cold, key=latency) if cold else min(self.probes, key=_in_flight)

    def use(self, slot: int) -> float | None:
        """A request goes there: it counts in flight, and uses the probe up. The number before, None if not known."""
        probe = next((probe for probe in self.probes if probe.slot == slot), None)
        if probe is None:
            return None
        before = probe.in_flight
        probe.in_flight += 1.0
        probe.uses -= 1
        if probe.uses <= 0:
            self.probes.remove(probe)
        return before

    def remove(self, latency: Latency, rng: Random) -> None:
        """Remove the oldest and the worst in turn; worst is the hot one with most in flight, else the slowest."""
        for _ in range(_rounded(self._dials.remove, rng)):
            if not self.probes:
                return
            self.probes.remove(self._oldest() if self._oldest_next else self._worst(latency))
            self._oldest_next = not self._oldest_next

    def probe(self, usable: Sequence[int], in_flight: Callable[[int], float], now: float, rng: Random) -> None:
        """Probe nodes drawn at random; ``in_flight`` is what a slot answers."""
        dials, reuse = self._dials, self._dials.reuse(len(usable))
        drawn = rng.sample(usable, min(_rounded(dials.probes, rng), len(usable)))
        fresh = [Probe(slot, now, in_flight(slot), _rounded(reuse, rng)) for slot in drawn]
        self._heard.extend(probe.in_flight for probe in fresh)
        self.probes = [probe for probe in self.probes if probe.slot not in drawn] + fresh
        while len(self.probes) > dials.most(len(usable)):
            self.probes.remove(self._oldest())

    def _limit(self) -> float:
        """θ, the quantile of the numbers in flight that are known (nearest rank)."""
        known = sorted(self._heard or map(_in_flight, self.probes))
        return known[min(int(self._dials.quantile * len(known)), len(known) - 1)]

    def _oldest(self) -> Probe:
        return min(self.probes, key=lambda probe: probe.at_s)

    def _worst(self, latency: Latency) -> Probe:
        limit = self._limit()
        hot = [probe for probe in self.probes if probe.in_flight > limit]
        return max(hot, key=_in_flight) if hot else max(self.probes, key=latency)


def _in_flight(probe: Probe) -> float:
    return probe.in_flight


def _rounded(value: float, rng: Random) -> int:
    """A fraction is rounded up as often as it says."""
    whole = int(value)
    return whole + (rng.random() < value - whole)
