"""When would each node answer? Network, queue, service and learned error of all candidates of one request.

Pure arithmetic over the columns of an :class:`mesh.outlook.Outlook`; ``now`` is an argument. A prediction counts the
work that goes before the request (higher classes, and earlier deadlines of its own), drained until the request is
there. Not here: how the columns are kept (``outlook``), which candidate to take (``balancer``).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from mesh.messages import BINS, EDGES_MS
from mesh.outlook import Column, Outlook, row_of

STALE_MS = 3000.0
"""Age from which a report is not carried on any more; what counts then is a peak-sensitive average of the answers,
times the requests of our own that are there."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs, as far as routing goes."""

    model: Hashable
    left_ms: float
    """Until its deadline."""
    given_ms: float
    """The whole time that its caller gave."""
    nbytes: int
    """To carry there."""
    reply_bytes: int = 4096
    priority: int = 0
    """Class, 1 goes first; 0 is none and goes last."""


class Estimate(NamedTuple):
    """Predicted milliseconds of one candidate, by part."""

    network_ms: float
    wait_ms: float
    service_ms: float
    bias_ms: float = 0.0
    """What answers of that node took beyond prediction, of late."""
    sigma_ms: float = 0.0
    """By how much predictions of it are wrong, on average."""

    @property
    def total_ms(self) -> float:
        return self.network_ms + self.wait_ms + self.service_ms + self.bias_ms


class Estimates(NamedTuple):
    """The parts of all slots. ``total`` is infinite where the request cannot be asked for."""

    total: Column
    network: Column
    wait: Column
    service: Column
    sigma: Column
    penalty: Column

    def at(self, slot: int) -> Estimate:
        """Parts of one slot; the bias is what is left of the total."""
        network, wait, service = (float(part[slot]) for part in (self.network, self.wait, self.service))
        bias = float(self.total[slot] - self.penalty[slot]) - network - wait - service
        return Estimate(network, wait, service, bias, float(self.sigma[slot]))


def estimate(outlook: Outlook, ask: Ask, now: float) -> Estimates:
    """Predict every slot, those that no node has too: their penalty is infinite."""
    now_ms = now * 1e3
    service, half, taken = outlook.of(ask.model)[0], outlook.half, outlook.taken
    there = half + np.maximum(outlook.clear - now_ms, 0.0) + outlook.up_pace * ask.nbytes
    network = there + half + outlook.down_pace * ask.reply_bytes
    wait = outlook.free - np.maximum(there + (now_ms - outlook.base), 0.0)
    busy = outlook.busy.nonzero()[0]
    if len(busy):
        wait[busy] += _queued(outlook, busy, now_ms + ask.left_ms, ask.priority)
    wait = np.maximum(wait, 0.0)
    least = network + service
    total = np.maximum(least + wait + outlook.bias, least)
    total += outlook.penalty
    for slot in ((taken < now_ms - STALE_MS) & (total < inf)).nonzero()[0].tolist():
        if (peak_ms := outlook.residuals[slot].peak_ms(now)) > 0.0:
            total[slot] = outlook.penalty[slot] + max(peak_ms * (outlook.in_flight(slot) + 1), least[slot])
    return Estimates(total, network, wait, service, outlook.sigma, outlook.penalty)


_EDGES = np.array([*EDGES_MS, 2.0 * EDGES_MS[-1]])
"""The last bin has no end; it is taken for as long as all before it."""
_BIN = np.array([*range(BINS), BINS - 1])
_PER_MS = np.array([*(1.0 / np.diff(_EDGES, prepend=0.0)), 0.0])
_OFFSET = np.array([0.0, *(-_EDGES[:-1] * _PER_MS[1:-1]), 1.0])
"""The share of a bin that goes before a deadline is ``_OFFSET`` + ``_PER_MS`` x milliseconds left."""


def _queued(outlook: Outlook, slots: np.ndarray, deadline_ms: float, priority: int) -> Column:
    """Queued work that goes before the request: the bins before that of its deadline, and its share of that one."""
    left = np.maximum(deadline_ms - outlook.taken[slots], 0.0)
    bins = _EDGES.searchsorted(left)
    at = slots * outlook.queue.shape[1] + _BIN[bins]
    queue = outlook.queue.ravel()[row_of(priority) :]
    before: Column = queue[at]
    sooner: Column = before + (_OFFSET[bins] + left * _PER_MS[bins]) * (queue[1:][at] - before)
    return sooner
