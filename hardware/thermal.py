"""What heat will do to the speed of a device, before it does it. Pure: samples in, a forecast out.

A device that heats up under load follows an exponential curve, on which a straight line would always see a trip point
ahead; so a curve is fitted that may level off, over the longest recent window that it fits. Once clocks are held down,
they themselves say how fast the device is. Not here: sensors, what a router makes of the capacity.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hardware.readings import DeviceReadings

HORIZON_S = 25.0
"""Throttling is announced at most so long before: work that is routed now is done by then."""
WINDOWS_S = (60.0, 40.0, 25.0, 15.0, 10.0)
"""Windows a curve is fitted over, the longest that fits counts: load that changes bends the curve."""
MIN_SAMPLES = 10
FIT_C = 0.8
"""Root mean square that sensor noise of one degree to either side leaves; more is no fit."""
TAUS_S = (3.0, 5.0, 8.0, 12.0, 20.0, 35.0, 64.0)
"""Time constants that are tried, from a bare die to a heat sink; a straight line too."""
CONFIRMED_BY = 7
"""Predictions of which more than half must see the trip point before it counts."""
GAP_S = 10.0
"""After a longer silence the past says nothing."""

EXPECTED_SHARE = 0.6
"""Speed of a device that throttles, until it was seen to: Orin modules fall to about that at their first steps."""
LEAST_SHARE = 0.05
BUSY_PERCENT = 50.0
"""Below that a low clock means too little work, not too much heat."""
DOWN_PER_S = 0.1
UP_PER_S = 0.05
HOLD_S = 10.0
"""A lowered capacity rises again only after so long without a reason to be lower."""
DEAD_BAND = 0.02


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    """Monotonic time."""
    temperature_c: float | None
    trip_c: float | None
    """Where throttling begins."""
    clock_ratio: float | None = None
    """Clock under load over the clock of a cool device; None while idle or unknown."""
    throttled: tuple[str, ...] | None = None
    """Why clocks are held down now; None if unknown."""


@dataclass(frozen=True, slots=True)
class Capacity:
    share: float = 1.0
    """Speed expected shortly, as a share of the speed when cool."""
    reason: str = ""
    """Why it is below 1."""
    seconds_to_throttle: float | None = None
    """None where no throttling is in sight within the horizon."""


class Forecast:
    """One device. Feed it every second; with unknown temperature or trip point it follows the clocks alone."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._ahead: deque[float] = deque([math.inf] * CONFIRMED_BY, maxlen=CONFIRMED_BY)
        self._share = 1.0
        self._reason = ""
        self._held_until = -math.inf
        self._expected = EXPECTED_SHARE
        self._lowest: float | None = None

    def add(self, sample: Sample) -> Capacity:
        samples = self._samples
        if samples and not 0 < sample.at_s - samples[-1].at_s <= GAP_S:
            samples.clear()
        step_s = sample.at_s - samples[-1].at_s if samples else 0.0
        samples.append(sample)
        while samples[0].at_s < sample.at_s - WINDOWS_S[0]:
            samples.popleft()
        ahead_s = self._confirmed(seconds_to_trip(samples))
        target, reason = self._target(sample, ahead_s)
        self._learn(sample)
        self._move(target, reason, sample, step_s)
        return Capacity(self._share, self._reason if self._share < 1 else "", ahead_s)

    def _confirmed(self, ahead_s: float | None) -> float | None:
        """The middle one of the last predictions: noise makes single ones."""
        self._ahead.append(math.inf if ahead_s is None else ahead_s)
        middle = median(self._ahead)
        return middle if math.isfinite(middle) else None

    def _target(self, sample: Sample, ahead_s: float | None) -> tuple[float, str]:
        """What the capacity should be, smoothing aside, and why."""
        ratio = self._ratio()
        if sample.throttled:
            share = self._expected if ratio is None else ratio
            return max(LEAST_SHARE, share), f"throttled: {', '.join(sample.throttled)}"
        if ahead_s is None:
            return 1.0, ""
        trip = f"{sample.trip_c:g} °C"
        if ahead_s == 0 and ratio is not None:
            return max(LEAST_SHARE, ratio), f"at its limit of {trip}"
        share = self._expected + (1 - self._expected) * ahead_s / HORIZON_S
        return share, f"reaches its limit of {trip} in {math.ceil(ahead_s / 5) * 5} s" if ahead_s else f"at {trip}"

    def _ratio(self) -> float | None:
        """The clock ratio of the last seconds, held down or not as now. Single ones catch the clock between steps."""
        now = bool(self._samples[-1].throttled)
        recent = [
            s.clock_ratio for s in list(self._samples)[-5:] if s.clock_ratio is not None and bool(s.throttled) == now
        ]
        return min(1.0, median(recent)) if recent else None

    def _learn(self, sample: Sample) -> None:
        """How far the clock fell in the last throttling is what the next one is expected to cost."""
        ratio = self._ratio()
        if sample.throttled and ratio is not None:
            self._lowest = max(LEAST_SHARE, min(ratio, self._lowest or 1.0))
            self._expected = min(self._expected, self._lowest)
        elif self._lowest is not None and not sample.throttled and self._share == 1.0:
            self._expected, self._lowest = self._lowest, None

    def _move(self, target: float, reason: str, sample: Sample, step_s: float) -> None:
        """Down at once when clocks are down, gently before; up again late and slowly, so that noise never shows."""
        if target < self._share - DEAD_BAND:
            down = target if sample.throttled else max(target, self._share - DOWN_PER_S * step_s)
            self._share, self._reason = down, reason
        if target < 1 and target < self._share + DEAD_BAND:
            self._held_until = sample.at_s + HOLD_S
        elif target > self._share and sample.at_s >= self._held_until:
            self._share = min(target, self._share + UP_PER_S * step_s)
            self._reason = reason or "cools down"


class CoolClock:
    """Turns readings into samples: remembers the clock that the device reaches under load when nothing holds it down.

    The nominal maximum is not it: most desktop GPUs never hold that, with all their fans.
    """

    def __init__(self) -> None:
        self._cool_mhz: float | None = None

    def sample(self, at_s: float, reading: DeviceReadings) -> Sample:
        clock, most = reading.clock_mhz, reading.clock_max_mhz
        busy = reading.utilization_percent is not None and reading.utilization_percent >= BUSY_PERCENT
        ratio = None
        if clock is not None and busy:
            if reading.throttled == ():
                self._cool_mhz = max(clock, self._cool_mhz or 0.0)
            cool = min((c for c in (self._cool_mhz, most) if c is not None), default=clock)
            ratio = min(1.0, clock / cool) if cool > 0 else None
        return Sample(at_s, reading.temperature_c, reading.trip_c, ratio, reading.throttled)


def seconds_to_trip(samples: Sequence[Sample]) -> float | None:
    """Time until the curve through the last samples meets the trip point of the last one.

    0 at or over it; None if that is not within the horizon, or not known.
    """
    last = samples[-1]
    if last.temperature_c is None or last.trip_c is None:
        return None
    points = _despiked([(s.at_s - last.at_s, s.temperature_c) for s in samples if s.temperature_c is not None])
    curve: _Curve | None = None
    span_s = 0.0
    for window_s in WINDOWS_S:
        recent = [point for point in points if point[0] >= -window_s]
        if len(recent) < MIN_SAMPLES:
            break
        curve, span_s = _fit(recent), -recent[0][0]
        if curve.rms_c <= FIT_C:
            break
    if curve is None:
        return 0.0 if last.temperature_c >= last.trip_c else None
    if curve.at(0.0) >= last.trip_c:
        return 0.0
    ahead_s = curve.reaches(last.trip_c)
    # a curve says nothing about a time much longer than what it was fitted over
    return ahead_s if ahead_s is not None and ahead_s <= min(HORIZON_S, 2 * span_s) else None


def _despiked(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each temperature as the median with its neighbours, so that single wrong readings vanish and curves stay curves.

    The ends have their missing neighbour from the straight line through the next two.
    """
    if len(points) < 3:
        return points
    inner = [t for _, t in points]
    padded = [2 * inner[1] - inner[2], *inner, 2 * inner[-2] - inner[-3]]
    return [(at, median(padded[n : n + 3])) for n, (at, _) in enumerate(points)]


@dataclass(frozen=True, slots=True)
class _Curve:
    """``base + rise * (1 - exp(-(t - start) / tau))``, or ``base + rise * (t - start)`` without tau."""

    start_s: float
    tau_s: float | None
    base_c: float
    rise: float
    rms_c: float

    def at(self, at_s: float) -> float:
        return self.base_c + self.rise * _basis(at_s - self.start_s, self.tau_s)

    def reaches(self, temperature_c: float) -> float | None:
        """When, seconds from now; None if never."""
        if self.rise <= 0:
            return None
        share = (temperature_c - self.base_c) / self.rise
        if self.tau_s is None:
            return share + self.start_s
        return self.start_s - self.tau_s * math.log(1 - share) if share < 1 else None


def _basis(elapsed_s: float, tau_s: float | None) -> float:
    return elapsed_s if tau_s is None else 1 - math.exp(-elapsed_s / tau_s)


def _fit(points: list[tuple[float, float]]) -> _Curve:
    """The curve of least squares, over all time constants."""
    return min((_fit_one(points, tau_s) for tau_s in (None, *TAUS_S)), key=lambda curve: curve.rms_c)


def _fit_one(points: list[tuple[float, float]], tau_s: float | None) -> _Curve:
    start_s, count = points[0][0], len(points)
    xs = [_basis(at_s - start_s, tau_s) for at_s, _ in points]
    ys = [temperature for _, temperature in points]
    x_mean, y_mean = sum(xs) / count, sum(ys) / count
    variance = sum((x - x_mean) ** 2 for x in xs)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    rise = covariance / variance if variance > 0 else 0.0
    base = y_mean - rise * x_mean
    squares = sum((y - base - rise * x) ** 2 for x, y in zip(xs, ys, strict=True))
    return _Curve(start_s, tau_s, base, rise, math.sqrt(squares / count))
