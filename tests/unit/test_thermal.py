"""The forecast on a simulated sensor: capacity falls before the clock does, noise and a warm box do not lower it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise

import pytest

from hardware.readings import DeviceReadings
from hardware.thermal import (
    DOWN_PER_S,
    EXPECTED_SHARE,
    HOLD_S,
    HORIZON_S,
    UP_PER_S,
    Capacity,
    CoolClock,
    Forecast,
    Sample,
    seconds_to_trip,
)

TRIP_C = 95.0
AMBIENT_C = 50.0
NOISE = [None, *range(8)]
"""Seeds of the sensor's noise of one degree to either side; None is a sensor without."""


@dataclass(frozen=True)
class Moment:
    at_s: float
    clock_ratio: float
    capacity: Capacity


class Board:
    """Heats up exponentially under load, slows its clock at the trip point and frees it three degrees below."""

    def __init__(self, steady_c: float, tau_s: float, seed: int | None, throttled_ratio: float = 0.7) -> None:
        self.steady_c = steady_c
        self.temperature_c = AMBIENT_C
        self.at_s = 0.0
        self.ratio = 1.0
        self._tau_s = tau_s
        self._throttled_ratio = throttled_ratio
        self._noise = None if seed is None else random.Random(seed)
        self._forecast = Forecast()

    def step(self) -> Moment:
        aim = self.steady_c if self.ratio == 1 else AMBIENT_C + (self.steady_c - AMBIENT_C) * 0.8
        self.temperature_c += (aim - self.temperature_c) * (1 - math.exp(-1 / self._tau_s))
        if self.temperature_c >= TRIP_C:
            self.ratio = self._throttled_ratio
        elif self.temperature_c < TRIP_C - 3:
            self.ratio = 1.0
        self.at_s += 1.0
        seen = self.temperature_c + (self._noise.uniform(-1, 1) if self._noise else 0.0)
        why = ("heat",) if self.ratio < 1 else ()
        return Moment(self.at_s, self.ratio, self._forecast.add(Sample(self.at_s, seen, TRIP_C, self.ratio, why)))

    def run(self, seconds: int) -> list[Moment]:
        return [self.step() for _ in range(seconds)]


def turns(moments: list[Moment]) -> int:
    """How often the capacity changed its direction."""
    moves = [b.capacity.share - a.capacity.share for a, b in pairwise(moments)]
    signs = [move > 0 for move in moves if move]
    return sum(a != b for a, b in pairwise(signs))


@pytest.mark.parametrize("seed", NOISE)
@pytest.mark.parametrize(("steady_c", "tau_s"), [(110, 20), (110, 60), (130, 120), (105, 90)])
def test_capacity_falls_before_the_clock_does(steady_c: float, tau_s: float, seed: int | None) -> None:
    moments = Board(steady_c, tau_s, seed).run(300)
    slowed = next(n for n, m in enumerate(moments) if m.clock_ratio < 1)
    lowered = 1 + max(n for n in range(slowed) if moments[n].capacity.share == 1)
    assert slowed - 2 * HORIZON_S <= lowered <= slowed - 5
    assert moments[slowed - 1].capacity.share < 0.8
    falling = [m.capacity for m in moments[lowered:slowed]]
    assert all("its limit of 95 °C" in c.reason for c in falling if c.share < 1)
    if seed is None:
        assert all(c.seconds_to_throttle is not None for c in falling)
        shares = [c.share for c in falling]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("seed", NOISE)
@pytest.mark.parametrize(("idle_c", "steady_c", "tau_s"), [(60, 110, 20), (60, 110, 60), (80, 110, 40)])
def test_it_falls_in_time_when_load_begins_after_a_long_idleness(
    idle_c: float, steady_c: float, tau_s: float, seed: int | None
) -> None:
    board = Board(idle_c, tau_s, seed)
    board.temperature_c = idle_c
    board.run(120)
    board.steady_c = steady_c
    moments = board.run(200)
    slowed = next(n for n, m in enumerate(moments) if m.clock_ratio < 1)
    assert all(m.capacity.share < 1 for m in moments[slowed - 10 : slowed])


@pytest.mark.parametrize("seed", NOISE)
def test_it_falls_smoothly_and_not_below_what_throttling_costs(seed: int | None) -> None:
    moments = Board(110, 60, seed).run(300)
    before = [m for m in moments if m.clock_ratio == 1][: next(n for n, m in enumerate(moments) if m.clock_ratio < 1)]
    assert all(b.capacity.share >= a.capacity.share - DOWN_PER_S - 1e-9 for a, b in pairwise(before))
    assert min(m.capacity.share for m in moments) >= EXPECTED_SHARE


@pytest.mark.parametrize("seed", NOISE)
@pytest.mark.parametrize(("steady_c", "tau_s"), [(93, 60), (92, 20), (93, 120), (90, 30), (85, 20)])
def test_a_board_that_levels_off_below_its_trip_point_is_not_punished(
    steady_c: float, tau_s: float, seed: int | None
) -> None:
    moments = Board(steady_c, tau_s, seed).run(600)
    assert min(m.capacity.share for m in moments) >= 0.9
    assert sum(m.capacity.share for m in moments) / len(moments) > 0.995


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("steady_c", [60, 85, 92])
def test_noise_never_shows(steady_c: float, seed: int) -> None:
    board = Board(steady_c, 30, seed)
    board.temperature_c = steady_c
    assert {m.capacity.share for m in board.run(600)} == {1.0}


def test_even_one_degree_below_the_trip_point_noise_makes_no_flapping() -> None:
    for seed in range(8):
        board = Board(94, 30, seed)
        board.temperature_c = 94
        assert turns(board.run(600)) <= 600 / (2 * HOLD_S)


def test_single_wrong_readings_vanish() -> None:
    forecast = Forecast()
    for t in range(120):
        temperature = 130.0 if t % 10 == 9 else 70.0
        assert forecast.add(Sample(float(t), temperature, TRIP_C, 1.0, ())).share == 1.0


@pytest.mark.parametrize("seed", NOISE)
def test_a_throttled_board_has_what_its_clock_gives_and_recovers_late_and_slowly(seed: int | None) -> None:
    board = Board(110, 40, seed, throttled_ratio=0.5)
    while board.step().clock_ratio == 1:
        pass
    assert board.step().capacity.share == pytest.approx(0.5)
    assert board.step().capacity.reason == "throttled: heat"
    board.steady_c = 70  # the load ends
    moments = board.run(200)
    freed = next(n for n, m in enumerate(moments) if m.clock_ratio == 1)
    shares = [m.capacity.share for m in moments]
    assert max(shares[: freed + int(HOLD_S) - 2]) == pytest.approx(0.5)
    assert all(0 <= b - a <= UP_PER_S + 1e-9 for a, b in pairwise(shares))
    assert (shares[-1], moments[-1].capacity.reason) == (1.0, "")


def test_the_next_throttling_is_expected_to_cost_what_the_last_one_did() -> None:
    board = Board(110, 40, None, throttled_ratio=0.8)
    while board.step().clock_ratio == 1:
        pass
    board.run(10)
    board.steady_c = 70
    board.run(300)
    board.steady_c = 110
    moments = []
    while (moment := board.step()).clock_ratio == 1:
        moments.append(moment)
    assert 0.8 <= moments[-1].capacity.share < 0.9


def test_without_a_trip_point_or_a_temperature_the_clocks_are_followed() -> None:
    forecast = Forecast()
    for t in range(40):
        assert forecast.add(Sample(float(t), 20.0 + 2 * t, None)) == Capacity()
        assert seconds_to_trip([Sample(0.0, None, TRIP_C)]) is None
    assert forecast.add(Sample(40.0, None, None, 0.6, ("power cap",))).share == 0.6
    unknown = Forecast()
    assert unknown.add(Sample(0.0, None, None, None, ("power cap",))).share == EXPECTED_SHARE
    assert Forecast().add(Sample(0.0, None, None, 0.2, None)) == Capacity(), "a low clock alone is no throttling"


def test_a_silence_forgets_the_curve() -> None:
    forecast = Forecast()
    for t in range(20):
        forecast.add(Sample(float(t), 50.0 + t, TRIP_C))
    late = forecast.add(Sample(500.0, 94.0, TRIP_C))
    assert late == Capacity()


def test_seconds_to_trip_is_right_on_a_straight_line_and_on_a_curve() -> None:
    line = [Sample(float(t), 60.0 + t, TRIP_C) for t in range(21)]
    assert seconds_to_trip(line) == pytest.approx(15.0, abs=0.1)
    curve = [Sample(float(t), 110 - 60 * math.exp(-t / 20), TRIP_C) for t in range(16)]
    assert seconds_to_trip(curve) == pytest.approx(20 * math.log(4) - 15, abs=1.0)
    assert seconds_to_trip([Sample(float(t), 95.0 + t, TRIP_C) for t in range(3)]) == 0.0


def reading(clock: float, percent: float = 90.0, throttled: tuple[str, ...] | None = ()) -> DeviceReadings:
    return DeviceReadings(
        "gpu", "nvml", utilization_percent=percent, clock_mhz=clock, clock_max_mhz=2100, throttled=throttled
    )


def test_clocks_are_measured_against_what_the_cool_device_reached_under_load() -> None:
    clock = CoolClock()
    assert clock.sample(0.0, reading(210, percent=3.0)).clock_ratio is None, "an idle device clocks down"
    assert clock.sample(1.0, reading(1050, throttled=("heat",))).clock_ratio == 0.5, "nothing better is known yet"
    assert clock.sample(2.0, reading(1800)).clock_ratio == 1.0
    assert clock.sample(3.0, reading(900, throttled=("heat",))).clock_ratio == 0.5
    assert clock.sample(4.0, DeviceReadings("gpu", "nvml")) == Sample(4.0, None, None)
