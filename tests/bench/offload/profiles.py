"""What a batching node needs for a number of rows, by its affine profile: formulas that several policies share.

A profile is (a ms, c ms per row, most rows B): a run of b rows takes a + c·b. Pure. Not here: the simulated nodes
(world.py), what a policy makes of these figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

Profile = tuple[float, float, int]


def run_ms(profile: Profile, rows: int = 1) -> float:
    """One run of so many rows, at most B."""
    a, c, most = profile
    return a + c * min(rows, most)


def work_ms(profile: Profile, rows: int) -> float:
    """So many rows in the fewest runs: W(q) = ⌈q/B⌉·a + q·c (policy.md 6.2)."""
    a, c, most = profile
    return ceil(rows / most) * a + rows * c


def row_ms(profile: Profile, company: int = 3) -> float:
    """What one more row costs where runs are usually shared by ``company`` rows: a/min(B, company) + c."""
    a, c, most = profile
    return a / min(most, company) + c


def best_row_ms(profile: Profile) -> float:
    """The least that a row can cost: its share of a full run."""
    a, c, most = profile
    return a / most + c


def rows_per_ms(profile: Profile, rows: float) -> float:
    """Service rate with ``rows`` rows in the system: b/(a + c·b) with b = min(rows, B); concave, flat beyond B."""
    a, c, most = profile
    together = min(rows, float(most))
    return together / (a + c * together) if together > 0.0 else 0.0


def queue_ms(profiles: tuple[Profile, ...], queue: Iterable[tuple[int, float, int]]) -> float:
    """All that is queued, as (model, milliseconds left, rows), whatever the deadlines."""
    rows: dict[int, int] = {}
    for model, _, count in queue:
        rows[model] = rows.get(model, 0) + count
    return sum(work_ms(profiles[model], count) for model, count in rows.items())
