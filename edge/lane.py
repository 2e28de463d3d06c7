"""The waiting requests of a device: lanes of requests that may run together, and in each the order they go in.

A lane has one model, the same input names, types and shapes behind the first dimension, and the same outputs; where
requests run alone, the same shapes, which tell what a run costs. It is cut into classes of priority, 1 first; inside a
class the earliest deadline goes first. A class that waits long for its next run climbs over those above it, so that a
stream of urgent requests starves no other. It climbs as a whole: cut up by age, a queue could not be weighed against
deadlines any more. Not here: the rule for the next run (``batching``), when it starts (``executor``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from math import inf

from edge import batch
from edge.batching import Cost, Entry, Planner, fill_up
from edge.latency import Shapes, Slowdown
from edge.served import Item, Served
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.messages import BINS, CLASSES, EDGES_MS, Queued

CLIMB_S = 0.5
"""A class goes before the next higher one after each time so long without a run; after one it is back in its place."""
_EDGES_S = (*[ms / 1e3 for ms in EDGES_MS], inf)


def admit(
    served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, priority: int, now: float,
    order: int,
) -> Item:  # fmt: skip
    """A new request at the monotonic second ``now``, of the class that it or else its model says."""
    rows = batch.rows_of(inputs) if served.batching.max_rows > 1 else 0
    shapes = batch.shapes_of(inputs) if rows else tuple([tensor.shape for tensor in inputs])
    level = min(priority or served.priority or CLASSES, CLASSES)
    return Item(served, inputs, tuple(outputs), shapes, deadline, level, now, order, rows or 1, alone=rows == 0)


def unit_ms(served: Served, shapes: Shapes, limit: int, slowdown: Slowdown) -> tuple[float, float]:
    """What a row costs in the run of at most ``limit`` rows that costs least per row, and that run; 0 while unknown."""
    best = served.latency.best_rows(shapes, limit)
    ms = served.latency.expected_ms(shapes, best) * slowdown.factor
    return ms / best, ms


class Line:
    """The requests of one class in order of deadline; ``since`` is when it began to wait for a run."""

    __slots__ = ("ends", "items", "since")

    def __init__(self, since: float) -> None:
        self.items: list[Item] = []
        self.ends: list[float] = []
        """Their deadlines, to look for one as fast as can be."""
        self.since = since

    def add(self, item: Item) -> None:
        end = item.deadline.at
        index = bisect_right(self.ends, end)
        while index and self.ends[index - 1] == end and self.items[index - 1].order > item.order:
            index -= 1
        self.items.insert(index, item)
        self.ends.insert(index, end)

    def remove(self, item: Item) -> None:
        index = self.items.index(item)
        del self.items[index], self.ends[index]

    def rows(self, begin: int, end: int) -> int:
        return sum([item.rows for item in self.items[begin:end]])

    def spread(self, unit_ms: float, now: float, bins: list[float]) -> None:
        """Add the work, by time left, to the bins of :data:`EDGES_MS`; what is expired by ``now`` will not run."""
        ends, last = self.ends, self.ends[-1]
        begin = bisect_right(ends, now)
        for index, edge_s in enumerate(_EDGES_S):
            if last <= now + edge_s:
                bins[index] += unit_ms * self.rows(begin, len(ends))
                return
            end = bisect_right(ends, now + edge_s, begin)
            if end > begin:
                bins[index] += unit_ms * self.rows(begin, end)
                begin = end


class Lane:
    """Empty lanes are dropped by their :class:`Queue`. ``rows`` is how many wait in all, ``limit`` those of one run."""

    __slots__ = ("_lines", "_next", "key", "level", "limit", "rows", "served", "shapes")

    def __init__(self, key: object, served: Served, shapes: Shapes, limit: int) -> None:
        self.key = key
        self.served = served
        self.shapes = shapes
        self.limit = limit
        self.rows = 0
        self.level = CLASSES
        """Where the class that goes next has climbed to."""
        self._lines: dict[int, Line] = {}
        """By class."""
        self._next = CLASSES

    def __iter__(self) -> Iterator[Item]:
        for line in self._lines.values():
            yield from line.items

    def add(self, item: Item) -> None:
        line = self._lines.get(item.level)
        if line is None:
            line = self._lines[item.level] = Line(item.arrived)
        line.add(item)
        self.rows += item.rows

    def remove(self, item: Item) -> None:
        line = self._lines[item.level]
        line.remove(item)
        if not line.items:
            del self._lines[item.level]
        self.rows -= item.rows

    def climb(self, now: float) -> None:
        """Settle which class goes next."""
        self.level, self._next = min(
            [(max(level - int((now - line.since) / CLIMB_S), 0), level) for level, line in self._lines.items()]
        )

    def top(self) -> list[Item]:
        """The class that goes next, in order of deadline."""
        line = self._lines.get(self._next) or self._lines[min(self._lines)]
        return line.items

    def below(self) -> list[Item]:
        """All other classes, in order."""
        return [item for level in sorted(self._lines) if level != self._next for item in self._lines[level].items]

    def next_run(self, planner: Planner, cost: Cost, now: float) -> tuple[list[Item], list[Item]]:
        """Requests to drop, and those to run together, of the class that goes next; if all of it fits, others too."""
        top, best = self.top(), self.served.latency.best_rows(self.shapes, min(self.limit, self.rows))
        entries = [Entry((item.deadline.at - now) * 1e3, item.rows) for item in top]
        start, count = planner(entries, best, cost)
        chosen = top[start : start + count]
        rows = sum([item.rows for item in chosen])
        if start + count == len(top) and rows < best:
            others = self.below()
            more = [Entry((item.deadline.at - now) * 1e3, item.rows) for item in others]
            chosen += others[: fill_up(rows, entries[start].left_ms, more, best, cost)]
        return top[:start], chosen

    def runs(self, items: Sequence[Item], now: float) -> None:
        """Some of those that wait here run now: their classes fall back."""
        for level in {item.level for item in items}:
            self._lines[level].since = now

    def unit_ms(self, slowdown: Slowdown) -> tuple[float, float]:
        """What a row costs in the run that costs least per row, and that run; 0 while unknown."""
        return unit_ms(self.served, self.shapes, self.limit, slowdown)

    def spread(self, unit_ms: float, now: float, into: dict[int, list[float]]) -> None:
        """Add the work of each class, by time left, to its bins."""
        for level, line in self._lines.items():
            bins = into.get(level)
            if bins is None:
                bins = into[level] = [0.0] * BINS
            line.spread(unit_ms, now, bins)

    def rows_ahead(self, level: int, deadline: float, hopeless: float) -> int:
        """Rows that go before a new request of that class and deadline; none with a deadline before ``hopeless``."""
        rows = 0
        for of, line in self._lines.items():
            if of <= level:
                end = len(line.ends) if of < level else bisect_right(line.ends, deadline)
                rows += line.rows(bisect_left(line.ends, hopeless), end)
        return rows


class Queue:
    """All lanes of a device, by what makes requests alike."""

    def __init__(self) -> None:
        self.lanes: dict[object, Lane] = {}
        self.waiting = 0
        """Requests in all lanes."""
        self.changes = 0

    def add(self, item: Item) -> Lane:
        limit = 1 if item.alone else item.served.batching.max_rows
        key = _likeness(item) if limit > 1 else (id(item.served), item.shapes)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, item.served, item.shapes, limit)
        item.lane = lane
        lane.add(item)
        self.waiting += 1
        self.changes += 1
        return lane

    def take(self, item: Item) -> None:
        lane = item.lane
        if lane is None:
            raise ValueError("the request does not wait")
        item.lane = None
        lane.remove(item)
        self.waiting -= 1
        self.changes += 1
        if not lane.rows:
            del self.lanes[lane.key]

    def work(self, now: float, slowdown: Slowdown, share: float) -> Queued:
        """So large a share of all that waits, run in the best batches."""
        found: dict[int, list[float]] = {}
        for lane in self.lanes.values():
            lane.spread(lane.unit_ms(slowdown)[0] * share, now, found)
        return tuple([(level, _trimmed(bins)) for level, bins in sorted(found.items()) if any(bins)])

    def ahead_ms(self, item: Item, begin: float, slowdown: Slowdown) -> float:
        """The part of it that goes before a new request, if the next run begins at the monotonic second ``begin``.

        What cannot be in time any more by then will be dropped, and counts for nothing.
        """
        total = 0.0
        for lane in self.lanes.values():
            unit_ms, run_ms = lane.unit_ms(slowdown)
            total += unit_ms * lane.rows_ahead(item.level, item.deadline.at, begin + run_ms / 1e3)
        return total


def _trimmed(bins: list[float]) -> tuple[float, ...]:
    """Without the empty ones at the end; not all are."""
    while not bins[-1]:
        bins.pop()
    return tuple(bins)


def _likeness(item: Item) -> object:
    tensors = tuple([(tensor.name, tensor.datatype) for tensor in item.inputs])
    return id(item.served), tensors, item.shapes, item.outputs
