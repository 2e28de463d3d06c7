"""Answers inside their deadline against offered load, in virtual time: the rule for the next run against plainer ones.

The same policies, requests and measure as the benchmark's (``tests.bench.batching``), on a device whose runs cost what
a formula says. Not here: real models and real time, which are the benchmark's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import pytest

from edge.batching import Batching
from edge.latency import Latency
from edge.served import Warmed
from hardware.backend import RawTensor
from hardware.runtime import Runtime
from tests.bench.batching import LARGEST_BATCH, LOADS, Subject, goodput, policies
from tests.virtual import VirtualRuntime, run

ROWS = 800
"""What the device can do at best in the time of one measurement: enough for about 2 %."""
NOISE = 0.05

COSTS: dict[str, Callable[[int], float]] = {
    "affine": lambda rows: 4.0 + 0.5 * rows,
    "flat": lambda rows: 8.0 + 0.05 * rows,
    "linear": lambda rows: 5.0 * rows,
    "worse than linear": lambda rows: 5.0 * float(rows) ** 1.3,
    "slow": lambda rows: 200.0 + 25.0 * rows,  # requests wait for longer than a class takes to climb
}


def subject(name: str, seed: int) -> Subject:
    """As the warm-up would have it: batched as far as it pays, or with batching declared."""
    cost = COSTS[name]
    points = tuple((rows, cost(rows)) for rows in (1, 2, 4, 8, LARGEST_BATCH))
    latency = Latency()
    latency.measured(((1,),), points)
    best = latency.best_rows(((1,),), LARGEST_BATCH)
    inputs = [RawTensor("X", "UINT8", (1, 1), b"\0")]
    automatic = Warmed(inputs, ((1,),) if best > 1 else ((1, 1),), points, Batching(best))
    declared = Warmed(inputs, ((1,),), points, Batching(LARGEST_BATCH))
    return Subject(name, cast("Runtime", VirtualRuntime(cost, NOISE, seed)), automatic, declared)


@cache
def measured(name: str, policy: str, load: float) -> float:
    seed = LOADS.index(load)
    on = subject(name, seed)
    (rule,) = [rule for rule in policies(on) if rule.name == policy]
    return run(goodput(on, rule, load, ROWS / on.capacity, seed), ["tests.bench.batching"])


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("name", COSTS)
def test_at_no_load_is_no_batching_or_a_fixed_window_better(name: str, load: float) -> None:
    ours, *others = [measured(name, policy, load) for policy in ("ours", "none", "window")]
    assert ours >= 0.97 * max(others)


@pytest.mark.parametrize("name", COSTS)
def test_goodput_stays_at_its_peak_under_three_times_the_load(name: str) -> None:
    at = {load: measured(name, "ours", load) for load in LOADS}
    assert at[3.0] >= 0.9 * max(at.values())
    assert at[3.0] >= 0.9  # of what the device can do
    assert at[0.3] == pytest.approx(0.3, rel=0.15)  # all of it; arrivals are random


def test_requests_run_together_where_it_pays_and_else_do_not() -> None:
    """What the comparison is about: it must see a difference."""
    assert measured("affine", "none", 3.0) < 0.5 * measured("affine", "ours", 3.0)
    assert measured("linear", "window", 3.0) < 0.5 * measured("linear", "ours", 3.0)
