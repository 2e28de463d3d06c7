"""What is counted while requests are answered, so cheaply that nobody needs to switch it off: plain integers.

They are read when somebody scrapes. One loop writes and reads them. Not here: names and texts of metrics
(``node_metrics``), their wire form (``metrics``).
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Literal

from mesh.errors import MeshError
from mesh.values import ModelIdentity, Route

Caller = Literal["application", "node"]
"""Who asked: an application, or a node that passed its request on."""

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds for times: a small model on the CPU of a box to a large one over a slow link."""
MAX_SERIES = 1000
"""What would begin a series beyond is counted without its model: names come from the mesh, versions without end."""

CANCELLED = "cancelled"
"""Outcome of a request whose caller left."""
INTERNAL = "internal"


class Histogram:
    """How many values fell below each of ``bounds``, rising and finite, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values above the bound before and up to this one; the last has no bound."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def __copy__(self) -> Histogram:
        copied = Histogram(self.bounds)
        copied.counts, copied.sum = self.counts.copy(), self.sum
        return copied


class Requests:
    """The requests of a node's doors. Only models that are ``held`` have series: callers could make up any number."""

    def __init__(self, held: Callable[[ModelIdentity], bool]) -> None:
        self._held = held
        self.answered: dict[tuple[str, str, Route, Caller], Histogram] = {}
        """Seconds from arrival to answer by model, version, route and caller."""
        self.failed: dict[tuple[str, str, str, Caller], int] = {}
        """By model, version, outcome (an error code) and caller."""
        self.last_error = ""

    def answer(self, identity: ModelIdentity, route: Route, caller: Caller, seconds: float) -> None:
        key = identity.name, identity.version, route, caller
        histogram = self.answered.get(key)
        if histogram is None:
            if len(self.answered) >= MAX_SERIES:
                key = "", "", route, caller
            histogram = self.answered.setdefault(key, Histogram())
        histogram.observe(seconds)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """What a door raises in here, before a request is one, is a failure of the application's."""
        try:
            yield
        except Exception as error:
            self.failure(None, "application", error)
            raise

    def failure(self, identity: ModelIdentity | None, caller: Caller, error: BaseException) -> None:
        """``identity`` is None where the request never came to name a model that is there."""
        if isinstance(error, MeshError):
            outcome, self.last_error = error.code, error.text
        else:
            outcome = CANCELLED if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else INTERNAL
        key = ("", "", outcome, caller) if identity is None else (identity.name, identity.version, outcome, caller)
        count = self.failed.get(key, 0)
        if count == 0 and identity is not None and (len(self.failed) >= MAX_SERIES or not self._held(identity)):
            key = "", "", outcome, caller
            count = self.failed.get(key, 0)
        self.failed[key] = count + 1
