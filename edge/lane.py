"""The waiting requests of a device: lanes of requests that may run together, and in each the order they go in.

A lane has one model, the same input names, types and shapes behind the first dimension, and the same outputs; where
requests run alone, the same shapes, which tell what a run costs. It is cut into classes of priority, 1 first; inside a
class the earliest deadline goes first. A class that waits long for its next run climbs over those above it, so that a
stream of urgent requests starves no other. It climbs as a whole: cut up by age, a queue could not be weighed against
deadlines any more. Not here: which of them run (``batching``), when (``executor``).
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterator, Sequence

from edge import batch
from edge.latency import Shapes, Slowdown
from edge.served import Item, Served
from hardware.backend import RawTensor
from mesh.deadline import Deadline

CLASSES = 16
"""Lowest class: requests without a priority, and all of a larger number."""
CLIMB_S = 0.5
"""A class goes before the next higher one after each time so long without a run; after one it is back in its place."""


def admit(
    served: Served, inputs: Sequence[RawTensor], outputs: Sequence[str], deadline: Deadline, priority: int, now: float,
    order: int,
) -> Item:  # fmt: skip
    """A new request at the monotonic second ``now``, of the class that it or else its model says."""
    rows = batch.rows_of(inputs) if served.batching.max_rows > 1 else 0
    shapes = batch.shapes_of(inputs) if rows else tuple([tensor.shape for tensor in inputs])
    level = min(priority or served.priority or CLASSES, CLASSES)
    future = asyncio.get_running_loop().create_future()
    return Item(served, inputs, tuple(outputs), shapes, deadline, level, now, order, rows or 1, future, alone=rows == 0)


class Lane:
    """Empty lanes are dropped by their :class:`Queue`. ``rows`` is how many wait in all, ``limit`` those of one run."""

    __slots__ = ("_classes", "_next", "_since", "key", "level", "limit", "rows", "served", "shapes")

    def __init__(self, key: object, served: Served, shapes: Shapes, limit: int) -> None:
        self.key = key
        self.served = served
        self.shapes = shapes
        self.limit = limit
        self.rows = 0
        self.level = CLASSES
        """Where the class that goes next has climbed to."""
        self._classes: dict[int, list[Item]] = {}
        self._since: dict[int, float] = {}
        """Monotonic second since which each class waits for a run."""
        self._next = CLASSES

    def __iter__(self) -> Iterator[Item]:
        for items in self._classes.values():
            yield from items

    def add(self, item: Item) -> None:
        items = self._classes.get(item.level)
        if items is None:
            items = self._classes[item.level] = []
            self._since[item.level] = item.arrived
        insort(items, item)
        self.rows += item.rows

    def remove(self, item: Item) -> None:
        items = self._classes[item.level]
        items.remove(item)
        if not items:
            del self._classes[item.level], self._since[item.level]
        self.rows -= item.rows

    def climb(self, now: float) -> None:
        """Settle which class goes next."""
        self.level, self._next = min(
            [(max(level - int((now - self._since[level]) / CLIMB_S), 0), level) for level in self._classes]
        )

    def top(self) -> list[Item]:
        """The class that goes next, in order of deadline."""
        return self._classes[self._next] if self._next in self._classes else self._classes[min(self._classes)]

    def below(self) -> list[Item]:
        """All other classes, in order."""
        return [item for level in sorted(self._classes) if level != self._next for item in self._classes[level]]

    def runs(self, items: Sequence[Item], now: float) -> None:
        """Some of those that wait here run now: their classes fall back."""
        for level in {item.level for item in items}:
            self._since[level] = now

    def unit_ms(self, slowdown: Slowdown) -> tuple[float, float]:
        """What a row costs in the run that costs least per row, and that run; 0 while unknown."""
        latency = self.served.latency
        best = latency.best_rows(self.shapes, self.limit)
        ms = latency.expected_ms(self.shapes, best) * slowdown.factor
        return ms / best, ms

    def rows_ahead(self, level: int, deadline: float, hopeless: float) -> int:
        """Rows that go before a new request of that class and deadline; none with a deadline before ``hopeless``."""
        rows = 0
        for of, items in self._classes.items():
            if of < level:
                rows += sum([item.rows for item in items if item.deadline.at >= hopeless])
            elif of == level:
                rows += sum([item.rows for item in items if hopeless <= item.deadline.at <= deadline])
        return rows


class Queue:
    """All lanes of a device, by what makes requests alike."""

    def __init__(self) -> None:
        self.lanes: dict[object, Lane] = {}
        self.waiting = 0
        """Requests in all lanes."""

    def add(self, item: Item) -> Lane:
        limit = 1 if item.alone else item.served.batching.max_rows
        key = _likeness(item) if limit > 1 else (id(item.served), item.shapes)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key, item.served, item.shapes, limit)
        item.lane = lane
        lane.add(item)
        self.waiting += 1
        return lane

    def take(self, item: Item) -> None:
        lane = item.lane
        if lane is None:
            raise ValueError("the request does not wait")
        item.lane = None
        lane.remove(item)
        self.waiting -= 1
        if not lane.rows:
            del self.lanes[lane.key]

    def work_ms(self, slowdown: Slowdown) -> float:
        """All that waits, run in the best batches."""
        return sum([lane.rows * lane.unit_ms(slowdown)[0] for lane in self.lanes.values()])

    def ahead_ms(self, item: Item, begin: float, slowdown: Slowdown) -> float:
        """The part of it that goes before a new request, if the next run begins at the monotonic second ``begin``.

        What cannot be in time any more by then will be dropped, and counts for nothing.
        """
        total = 0.0
        for lane in self.lanes.values():
            unit_ms, run_ms = lane.unit_ms(slowdown)
            total += unit_ms * lane.rows_ahead(item.level, item.deadline.at, begin + run_ms / 1e3)
        return total


def _likeness(item: Item) -> object:
    tensors = tuple([(tensor.name, tensor.datatype) for tensor in item.inputs])
    return id(item.served), tensors, item.shapes, item.outputs
