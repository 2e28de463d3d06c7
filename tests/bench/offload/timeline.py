"""What happened when, in windows of 100 ms: arrivals, answers in time, where requests were sent.

Arithmetic on finished runs, pooled over seeds. Not here: runs (world.py), the faults looked at (faults.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from tests.bench.offload.world import Mesh

WINDOW_S = 0.1
LOOK = 10
"""Windows over which a level is taken."""
MOVED = 1.2
"""Traffic has moved when the share watched is below this many times what it is at the end."""
SLACK = 0.005
"""And may exceed it by that much, for shares near 0."""
BACK = 0.02
"""Attainment is back when it is at most this much below what it was before."""


@dataclass(frozen=True)
class Timeline:
    """Counts by window: `good` of `arrivals` (by birth), `watched` of `sent` (by dispatch)."""

    arrivals: tuple[int, ...]
    good: tuple[int, ...]
    sent: tuple[int, ...]
    watched: tuple[int, ...]


def timeline(mesh: Mesh, watched: Callable[[int, int], bool | None]) -> Timeline:
    """`watched` judges a dispatch by its origin and node; None leaves it out altogether."""
    windows = ceil(mesh.scenario.seconds / WINDOW_S) + 1
    arrivals, good, sent, seen = ([0] * windows for _ in range(4))
    for request, outcome in zip(mesh.environment.requests, mesh.outcomes, strict=True):
        window = int(request.born_s / WINDOW_S)
        arrivals[window] += 1
        good[window] += outcome == "good"
    for at_s, origin, node in mesh.dispatched:
        counts = watched(origin, node)
        if counts is not None and at_s < windows * WINDOW_S:
            sent[int(at_s / WINDOW_S)] += 1
            seen[int(at_s / WINDOW_S)] += counts
    return Timeline(tuple(arrivals), tuple(good), tuple(sent), tuple(seen))


def pooled(lines: Sequence[Timeline]) -> Timeline:
    """The same windows of several seeds together."""

    def summed(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
        return tuple([sum(column) for column in zip(*rows, strict=True)])

    return Timeline(
        summed([line.arrivals for line in lines]),
        summed([line.good for line in lines]),
        summed([line.sent for line in lines]),
        summed([line.watched for line in lines]),
    )


def window_of(at_s: float) -> int:
    return round(at_s / WINDOW_S)


def share(part: Sequence[int], whole: Sequence[int], begin_s: float, end_s: float) -> float:
    """Of the windows between two moments; 0 where nothing happened."""
    begin, end = window_of(begin_s), window_of(end_s)
    return sum(part[begin:end]) / max(sum(whole[begin:end]), 1)


def attained(line: Timeline, begin_s: float, end_s: float) -> float:
    return share(line.good, line.arrivals, begin_s, end_s)


def moved_s(line: Timeline, begin_s: float, end_s: float) -> float:
    """Seconds from the begin until the share watched stays near what it is in the last third before the end."""
    settled = share(line.watched, line.sent, begin_s + (end_s - begin_s) * 2.0 / 3.0, end_s)
    limit = MOVED * settled + SLACK
    return _first(line.watched, line.sent, begin_s, end_s, lambda level: level <= limit)


def back_s(line: Timeline, begin_s: float, end_s: float, before: float) -> float:
    """Seconds from the begin until attainment is nearly what it was `before`; infinite if not until the end."""
    return _first(line.good, line.arrivals, begin_s, end_s, lambda level: level >= before - BACK)


def _first(
    part: Sequence[int], whole: Sequence[int], begin_s: float, end_s: float, holds: Callable[[float], bool]
) -> float:
    """The first window that holds by itself and with the second that follows; infinite if none does."""
    begin, end = window_of(begin_s), window_of(end_s)
    for window in range(begin, max(end - LOOK, begin) + 1):
        levels = [
            sum(part[window : window + width]) / max(sum(whole[window : window + width]), 1) for width in (1, LOOK)
        ]
        if all(holds(level) for level in levels):
            return (window - begin) * WINDOW_S
    return inf
