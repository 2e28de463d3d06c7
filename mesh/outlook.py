"""What a router expects of every node it may ask, in columns: a slot for each node, so that a decision reads them all.

Fed by reports, by the router's own sends and by its answers. A node's queue is carried on between reports by dead
reckoning (Lindley's walk): what it told drains with time, what we sent since is added when it arrives there. Pure:
moments are seconds of a monotonic clock and arguments; the columns are in milliseconds. Not here: the prediction for a
request (``estimator``), the choice (``balancer``), who may be asked (``ways``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mesh.link import Link, Wire
from mesh.messages import BINS, CLASSES, EDGES_MS, Queued
from mesh.residual import Residual

Column = NDArray[np.float64]

WIDTH = CLASSES * BINS
LOCAL_MS = 0.1
"""What handing a request to this very process costs."""
SUSPECT_MS = 1e7
"""What a suspect node is made dearer by: it is taken only when nothing else is left."""
UNKNOWN_MS = 10.0
"""What an inference is taken to need that has not run anywhere yet."""


def row_of(level: int) -> int:
    """Where the bins of a class of priority begin; 0 is no priority, and behind all."""
    return (min(level or CLASSES, CLASSES) - 1) * BINS


class Sent(NamedTuple):
    """One of our requests at a node, or on its way there."""

    arrives_s: float
    level: int
    deadline_s: float
    work_ms: float


class Outlook:
    """Slots are given once; what is not usable has an infinite ``penalty``."""

    def __init__(self, slots: int = 16) -> None:
        self.slots: dict[str, int] = {}
        self._left: list[int] = []
        self.names: list[str] = []
        self.links: list[Link | None] = []
        """None is this very process."""
        self.residuals: list[Residual] = []
        self._sent: list[dict[int, Sent]] = []
        self._sharing: dict[Wire, list[int]] = {}
        self._last = 0
        self.penalty = np.full(slots, inf)
        self.cost = np.zeros(slots)
        self.half = np.full(slots, LOCAL_MS / 2)
        """Half a round trip."""
        self.clear = np.zeros(slots)
        """The moment at which the bytes will be through that are on the way there already."""
        self.up_pace = np.zeros(slots)
        """Milliseconds for a byte."""
        self.down_pace = np.zeros(slots)
        self.taken = np.zeros(slots)
        """The moment that the bins of ``queue`` are told from."""
        self.base = np.zeros(slots)
        """The moment up to which ``free`` and ``queue`` are reckoned."""
        self.free = np.zeros(slots)
        """Of the runs in progress."""
        self.queue = np.zeros((slots, WIDTH + 1))
        """Before each bin of each class, in the order in which they are served."""
        self.busy = np.zeros(slots, dtype=bool)
        """Whether anything is queued."""
        self.reported_in_flight = np.zeros(slots)
        """Requests of all models that the node said it had."""
        self.bias = np.zeros(slots)
        self.sigma = np.zeros(slots)
        self.services: dict[Hashable, tuple[Column, Column]] = {}
        """By model and slot: one inference, infinite where it cannot be had; and what one adds to a queue."""

    @property
    def count(self) -> int:
        return len(self.names)

    def slot(self, node: str, cost: float, link: Link | None) -> int:
        """The node's slot, new or known; ``cost`` orders the tiers."""
        at = self.slots.get(node)
        if at is None:
            at = self.slots[node] = self._new(node)
        if link is not None and link is not self.links[at]:
            self._share(at, link)
        self.links[at], self.cost[at] = link, cost
        return at

    def _new(self, node: str) -> int:
        if self._left:
            at = self._left.pop()
            self.names[at] = node
            return at
        if len(self.names) == len(self.penalty):
            self._grow()
        self.names.append(node)
        self.links.append(None)
        self.residuals.append(Residual())
        self._sent.append({})
        return len(self.names) - 1

    def forget(self, node: str) -> None:
        """The node is gone for good; its slot goes to the next new one."""
        at = self.slots.pop(node, None)
        if at is None:
            return
        self._unshare(at)
        self.links[at], self.residuals[at], self._sent[at] = None, Residual(), {}
        for name, fill in _COLUMNS.items():
            getattr(self, name)[at] = fill
        for service, row in self.services.values():
            service[at], row[at] = inf, 0.0
        self._left.append(at)

    def _share(self, at: int, link: Link) -> None:
        self._unshare(at)
        self._sharing.setdefault(link.up, []).append(at)

    def _unshare(self, at: int) -> None:
        link = self.links[at]
        if link is not None:
            self._sharing[link.up].remove(at)
            if not self._sharing[link.up]:
                del self._sharing[link.up]

    def _grow(self) -> None:
        more = len(self.penalty)
        for name, fill in _COLUMNS.items():
            column = getattr(self, name)
            rest = np.full((more, *column.shape[1:]), fill, dtype=column.dtype)
            setattr(self, name, np.concatenate([column, rest]))
        for model, (service, row) in self.services.items():
            self.services[model] = np.concatenate([service, np.full(more, inf)]), np.concatenate([row, np.zeros(more)])

    def of(self, model: Hashable) -> tuple[Column, Column]:
        """The columns of one model."""
        found = self.services.get(model)
        if found is None:
            found = self.services[model] = np.full(len(self.penalty), inf), np.zeros(len(self.penalty))
        return found

    def told(self, at: int, model: Hashable, service_ms: float, row_ms: float) -> None:
        """What a node said of one model; of a time that it does not know (0) is thought as of most other nodes'."""
        service, row = self.of(model)
        if service_ms == 0.0:
            known = service[: self.count][np.isfinite(service[: self.count])]
            service_ms = float(np.median(known)) if len(known) else UNKNOWN_MS
        service[at], row[at] = service_ms, row_ms or (0.0 if service_ms == inf else service_ms)

    def hear(self, at: int, taken_s: float, wait_ms: float, queued: Queued) -> None:
        """A node told of its work; ``taken_s`` is when that was true, on our clock.

        What we sent and it cannot have known of is added again, as it arrives.
        """
        self.taken[at] = self.base[at] = taken_s * 1e3
        total = 0.0
        if queued:
            work = np.zeros(WIDTH + 1)
            for level, bins in queued:
                start = row_of(level) + 1
                work[start : start + len(bins)] = bins
            np.cumsum(work, out=self.queue[at])
            total = self.queue[at, -1]
        elif self.busy[at]:
            self.queue[at] = 0.0
        self.busy[at] = bool(queued)
        self.free[at] = max(wait_ms - total, 0.0)
        if sent := self._sent[at]:
            for each in sorted([each for each in sent.values() if each.arrives_s > taken_s]):
                self._add(at, each)

    def send(self, at: int, sent: Sent) -> int:
        """Note a request of our own; returns the token for :meth:`ended`."""
        self._last += 1
        self._sent[at][self._last] = sent
        self._add(at, sent)
        return self._last

    def ended(self, at: int, token: int) -> None:
        """It was answered, refused, or given up."""
        self._sent[at].pop(token, None)

    def up_ms(self, at: int, nbytes: int, now: float) -> float:
        """Until a request of so many bytes, sent now, is there."""
        waits_ms = max(self.clear[at] - now * 1e3, 0.0)
        return float(self.half[at] + waits_ms + self.up_pace[at] * nbytes)

    def in_flight(self, at: int) -> int:
        """Our own unanswered requests there: what is lost at once when it dies."""
        return len(self._sent[at])

    def _add(self, at: int, sent: Sent) -> None:
        """Let time pass until it arrives, and put it in its place."""
        arrives, free = sent.arrives_s * 1e3, self.free[at]
        passed = arrives - self.base[at]
        if passed > 0.0:
            self.base[at] = arrives
            self.free[at] = left = max(free - passed, 0.0)
            if self.busy[at]:
                queue = self.queue[at]
                queue -= passed - (free - left)
                np.maximum(queue, 0.0, out=queue)
        bin_ = bin_of(sent.deadline_s * 1e3 - self.taken[at])
        self.queue[at, row_of(sent.level) + bin_ + 1 :] += sent.work_ms
        self.busy[at] = True

    def wire(self, at: int, now: float) -> None:
        """Take what the slot's link knows now, for all slots behind the same uplink."""
        link = self.links[at]
        if link is None:
            self.half[at], self.clear[at], self.up_pace[at], self.down_pace[at] = LOCAL_MS / 2, 0.0, 0.0, 0.0
            return
        self.half[at] = link.rtt_ms / 2
        self.down_pace[at] = 1.0 / link.down.rate(now)
        pace = 1.0 / link.up.rate(now)
        sharing: int | list[int] = self._sharing.get(link.up) or at
        self.up_pace[sharing], self.clear[sharing] = pace, now * 1e3 + link.up.ahead(now) * pace

    def learned(self, at: int, now: float) -> None:
        """Take what the slot's residual knows now."""
        residual = self.residuals[at]
        self.bias[at], self.sigma[at] = residual.bias_ms(now), residual.sigma_ms(now)


_COLUMNS = {
    "penalty": inf,
    "cost": 0.0,
    "half": LOCAL_MS / 2,
    "clear": 0.0,
    "up_pace": 0.0,
    "down_pace": 0.0,
    "taken": 0.0,
    "base": 0.0,
    "free": 0.0,
    "queue": 0.0,
    "busy": False,
    "reported_in_flight": 0.0,
    "bias": 0.0,
    "sigma": 0.0,
}


def bin_of(left_ms: float) -> int:
    """The bin of a request with so much time left (see ``mesh.messages.EDGES_MS``)."""
    return bisect_left(EDGES_MS, left_ms)
