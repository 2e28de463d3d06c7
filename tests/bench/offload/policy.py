"""What a routing policy sees and answers: the seam between the simulated mesh and every policy it compares.

Shapes only. The simulated mesh itself is in world.py, the policies in ours.py, baselines.py and omniscient.py.
Times are virtual: moments in seconds since the run's start, spans in milliseconds where the name says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from mesh.messages import Queued


class Report(NamedTuple):
    """What a node said last, with the moment it was taken (by the sender) and heard (by the receiver)."""

    node: int
    taken_s: float
    heard_s: float
    free_ms: float
    """What is left of the running batch when the report was taken."""
    slowdown: float
    arrivals_per_s: float
    """Work arriving, in seconds of work per second."""
    in_flight: int
    queue: tuple[tuple[int, float, int], ...]
    """(model, milliseconds left to the deadline at `taken_s`, rows), summarised as the scenario says."""
    service_ms: tuple[float, ...] = ()
    """Per model, what one row alone takes there now as the node has learned it, with the rest of a load that must come
    first; empty where a node does not say, which leaves the believed profile times `slowdown`."""
    queued: Queued = ()
    """All that waits, in milliseconds, by class and time left, as in the product's reports."""
    row_ms: tuple[float, ...] = ()
    """Per model, what one more row adds to the queue."""
    uplink_bytes: int = 0
    """What its router has under way to other sites."""


class Request(NamedTuple):
    """One arrival. `deadline_s` is a moment; `nbytes` go up to the node, `reply_bytes` come back."""

    id: int
    model: int
    origin: int
    born_s: float
    deadline_s: float
    nbytes: int
    reply_bytes: int
    priority: int


class Node(NamedTuple):
    """The static facts of a node that every policy may know."""

    index: int  # type: ignore[assignment]  # a node's number counts more here than a tuple's method
    site: int
    tier: str
    """`edge` or `cloud`."""
    profiles: tuple[tuple[float, float, int], ...]
    """Per model (a ms, c ms per row, most rows) as *believed*: S10 makes the belief wrong."""


class World(Protocol):
    """What one router sees at `now`: one router per origin node, or per router where a scenario has several."""

    now: float
    luck: random.Random
    nodes: Sequence[Node]

    def report(self, node: int) -> Report | None:
        """Return the newest report heard from the node, None before the first."""
        ...

    def in_flight(self, node: int) -> int:
        """Return this router's own unanswered requests at the node."""
        ...

    def sent(self, node: int) -> Sequence[tuple[float, int]]:
        """Return this router's own unanswered dispatches to the node as (sent_s, model), oldest first."""
        ...

    def network_ms(self, node: int, request: Request) -> float:
        """Return the shared link estimator's way there and back for this request; 0.1 for the router's own node."""
        ...

    def candidates(self, request: Request) -> Sequence[int]:
        """Return the usable nodes: model loaded or loadable, not ejected, tier allowed."""
        ...

    def truth(self) -> Any:
        """Return the simulated mesh itself, for the omniscient reference only."""
        ...


class Policy(Protocol):
    """One way of choosing, with one instance per router."""

    name: str

    def choose(self, request: Request, world: World) -> int | None:
        """Return a node's index, or None to refuse, which counts as a miss."""
        ...

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        """Learn how a dispatched request came out, `took_ms` after it was sent."""
        ...
