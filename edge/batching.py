"""Which requests of a queue run next, and which are dropped so that others make their deadlines: the goodput window.

A queue is served earliest deadline first. Where not all of it can be in time, the head of the queue is given up for the
run that answers the most rows per millisecond: capping every run by the oldest deadline would make runs smaller the
more there is to do, which is how overloaded batchers collapse (Nexus, SOSP 2019, drops by a sliding window; this one
weighs the windows by goodput). Pure: values in, a plan out. Not here: queues, clocks (``executor``), merging tensors
(``batch``), what a run costs (``latency``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Cost = Callable[[int], float]
"""Milliseconds a run of so many rows takes now, margin included; it does not fall with more rows."""

MOVE = 1.02
"""A window further back must answer this many times as much per millisecond."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests of a model may be run together along the first dimension."""

    max_rows: int = 1
    """1 runs every request alone."""
    delay_ms: float = 0.0
    """Longest that a request waits for company while the device idles; never beyond its slack."""


class Entry(NamedTuple):
    """One waiting request: milliseconds until its deadline, and its rows."""

    left_ms: float
    rows: int


class Plan(NamedTuple):
    """Drop the first ``drop`` of the queue, run the ``run`` behind them together."""

    drop: int
    run: int


Planner = Callable[[Sequence[Entry], int, Cost], Plan]


def plan(queue: Sequence[Entry], max_rows: int, cost: Cost) -> Plan:
    """Plan the next run of a queue in order of deadline, not empty; ``max_rows`` is a run's most rows.

    A request of more rows runs alone. If none can be in time the last one runs all the same: what was learned may be
    wrong, and only a run corrects it.
    """
    first = first_feasible(queue, cost)
    if first == len(queue):
        return Plan(len(queue) - 1, 1)
    count, rows = _fill(queue, first, max_rows, cost)
    if max_rows == 1 or _all_in_time(queue, first, max_rows, cost):
        return Plan(first, count)
    best, goodput = Plan(first, count), rows / cost(rows)
    starts = {bisect_left(queue, cost(n), lo=first, key=_left_ms) for n in range(2, max_rows + 1)}
    for start in sorted(starts - {first, len(queue)}):  # only there more rows than before make their deadline
        count, rows = _fill(queue, start, max_rows, cost)
        if (value := rows / cost(rows)) > MOVE * goodput:
            best, goodput = Plan(start, count), value
    return best


def _left_ms(entry: Entry) -> float:
    return entry.left_ms


def first_feasible(queue: Sequence[Entry], cost: Cost) -> int:
    """The first request that is in time if it runs now and alone; the length of the queue if none is."""
    for index, entry in enumerate(queue):
        if entry.left_ms >= cost(entry.rows):
            return index
    return len(queue)


def _fill(queue: Sequence[Entry], start: int, max_rows: int, cost: Cost) -> tuple[int, int]:
    """How many requests from ``start`` on fit one run that ends before the earliest of their deadlines; their rows."""
    left_ms = queue[start].left_ms
    rows = queue[start].rows
    count = 1
    for entry in queue[start + 1 :]:
        more = rows + entry.rows
        if more > max_rows or cost(more) > left_ms:
            break
        rows, count = more, count + 1
    return count, rows


def _all_in_time(queue: Sequence[Entry], start: int, max_rows: int, cost: Cost) -> bool:
    """Whether greedy runs from ``start`` on answer the whole queue in time."""
    spent_ms = 0.0
    while start < len(queue):
        count = rows = 0
        while start + count < len(queue):
            more = rows + queue[start + count].rows
            if count and (more > max_rows or spent_ms + cost(more) > queue[start].left_ms):
                break
            rows, count = more, count + 1
        spent_ms += cost(rows)
        if spent_ms > queue[start].left_ms:
            return False
        start += count
    return True


def fill_up(rows: int, left_ms: float, others: Sequence[Entry], max_rows: int, cost: Cost) -> int:
    """How many of ``others``, of lower priority, ride along in a run of ``rows`` rows without making anyone late."""
    count = 0
    for entry in others:
        rows += entry.rows
        left_ms = min(left_ms, entry.left_ms)
        if rows > max_rows or cost(rows) > left_ms:
            break
        count += 1
    return count
