"""Energy from power, and energy per inference. Pure: values in, values out.

Not here: counters that devices keep themselves, reading anything.
"""

from __future__ import annotations

from collections import deque

LONGEST_GAP_S = 10.0
"""Nobody knows what was drawn during a longer silence (a suspended box): it is left out."""
WINDOW_S = 60.0


class Integral:
    """Joules from samples of power, by trapezoids; None until a first step was complete, and while power is unknown."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._joules: float | None = None

    def add(self, at_s: float, power_w: float | None) -> float | None:
        if power_w is None:
            self._last = None
            return None
        if self._last is not None:
            before_s, before_w = self._last
            step_s = at_s - before_s
            if 0 < step_s <= LONGEST_GAP_S:
                self._joules = (self._joules or 0.0) + step_s * (power_w + before_w) / 2
        self._last = (at_s, power_w)
        return self._joules


class EnergyPerInference:
    """Energy of the devices over the inferences of the last minute, idle draw included."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, int]] = deque()

    def add(self, at_s: float, energy_j: float | None, inferences: int | None) -> float | None:
        """Both count upwards from any start. None while either is unknown, or nothing ran."""
        if energy_j is None or inferences is None:
            self._samples.clear()
            return None
        samples = self._samples
        if samples and _broken(samples[-1], (at_s, energy_j, inferences)):
            samples.clear()
        samples.append((at_s, energy_j, inferences))
        while len(samples) > 2 and samples[1][0] <= at_s - WINDOW_S:
            samples.popleft()
        joules, ran = energy_j - samples[0][1], inferences - samples[0][2]
        return joules / ran if ran else None


def _broken(last: tuple[float, float, int], now: tuple[float, float, int]) -> bool:
    """A silence, or a counter that began again."""
    return now[0] - last[0] > LONGEST_GAP_S or now[1] < last[1] or now[2] < last[2]
