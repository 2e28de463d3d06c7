"""What the executor holds: a version that is served, a request that waits for it, a run that answers some of them.

Plain state, changed by the executor alone. Not here: any decision (``batching``), the queue (``lane``), the loop that
acts (``executor``), the life of instances (``instances``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge.batching import Batching
from edge.latency import Latency, Shapes
from edge.tally import Tally
from hardware.backend import RawTensor
from hardware.runtime import Runtime
from mesh.deadline import Deadline

Answer = asyncio.Future[list[RawTensor]]


@dataclass(frozen=True, slots=True)
class Warmed:
    """What the warm-up found out. ``inputs`` is a request the model answers, for the watchdog."""

    inputs: list[RawTensor]
    shapes: Shapes
    points: tuple[tuple[int, float], ...]
    """Rows and milliseconds of a run."""
    batching: Batching

    @property
    def service_ms(self) -> float:
        return self.points[0][1]


@dataclass(slots=True, eq=False)
class Served:
    """One version on its runtime: where to run it, and what was learned."""

    name: str
    """Model and version, for texts."""
    key: str = ""
    """Under which it is loaded in the runtime now."""
    runtime: Runtime | None = None
    instances: int = 1
    """Runs that may go on at the same time."""
    priority: int = 0
    """Class of its requests that bring none, 1 before 2; 0 is behind all."""
    batching: Batching = field(default_factory=Batching)
    latency: Latency = field(default_factory=Latency)
    shapes: Shapes = ()
    """Those of the last run."""
    in_flight: int = 0
    """Admitted and unanswered, queued ones included."""
    running: int = 0
    """Runs in progress."""
    completed: int = 0
    stream_ms: float = 0.0
    """How long a stream of it lasts of late; 0 until one ended."""
    last_used: float = 0.0
    """Monotonic second of the last request."""
    last_done: float = 0.0
    """Monotonic second at which the last run ended."""
    company: float = 0.0
    """Requests that come along with one in the same turn of the loop, of late."""

    tally: Tally = field(default_factory=Tally)

    def warmed(self, warmed: Warmed) -> None:
        """Start from what the warm-up found out."""
        self.latency = Latency()
        self.latency.measured(warmed.shapes, warmed.points)
        self.shapes, self.batching = warmed.shapes, warmed.batching

    @property
    def ready(self) -> bool:
        return self.runtime is not None and self.runtime.alive


class Item(msgspec.Struct, eq=False):
    """One admitted inference; whatever happens to it happens to its own ``future``.

    It and a run are structs because one of each is made per request, in a third of the time of a dataclass.
    """

    served: Served
    inputs: Sequence[RawTensor]
    outputs: tuple[str, ...]
    shapes: Shapes
    deadline: Deadline
    level: int
    """Class of priority, 1 first."""
    arrived: float
    order: int
    rows: int
    """Of the first dimension; 1 for what can only run alone."""
    alone: bool = False
    """Not to be merged: it cannot be, or a run it was part of failed."""
    future: Answer = None  # type: ignore[assignment]
    """Set once it waits, or its run does: most answers of small models are there at once."""
    lane: Any = None
    """Where it waits; None while it runs and after."""
    run: Run | None = None
    timer: asyncio.TimerHandle | None = None
    """Fires at the deadline."""


class Run(msgspec.Struct, eq=False):
    """One run in a runtime and the requests it answers."""

    served: Served
    runtime: Runtime
    key: str
    shapes: Shapes
    rows: int
    items: list[Item]
    future: Answer
    started: float
    usual_ms: float
    """What it takes at usual speed; 0 while unknown."""
    live: int
    """Requests that still want the answer."""
    warm: bool = True
    """Whether the device was at work right before, so that the run tells of its speed."""
    hang: asyncio.TimerHandle | None = None
    """Fires when it goes on long after the last of its deadlines."""
