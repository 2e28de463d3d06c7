"""One version on this node: its state, where it runs, and what is said about it. Plain state.

Whoever moves it from state to state is elsewhere: ``loading`` (to READY), ``host`` (crashes), ``instances`` (the whole
life). Not here: the queue's view of it (``served``).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from edge.engines import Build
from edge.preflight import Footprint
from edge.repository import StoredModel
from edge.served import Served, Warmed
from edge.settings import Backend
from hardware.backend import Loaded
from mesh.messages import ModelLoad
from mesh.values import InstanceState, ModelIdentity

SERVES, COMES = 3, 2


def is_backend(effective: str, asked: str) -> bool:
    """Whether a model that runs there runs where it was asked to: tensorrt-rtx is tensorrt."""
    return effective == asked or effective.startswith(f"{asked}-")


@dataclass(slots=True, eq=False)
class Instance:
    """``chain`` are the backends to try in turn; the first is what is asked for."""

    stored: StoredModel
    chain: tuple[Backend, ...]
    served: Served
    state: InstanceState = "LOADING"
    reason: str = ""
    loaded: Loaded | None = None
    warmed: Warmed | None = None
    build: Build | None = None
    """The engine it waits for, or got."""
    footprint: Footprint | None = None
    """Measured; None until it was READY once."""
    evicted: bool = False
    """Unloaded to make room: not READY, and back when somebody asks for it."""
    spare: str = ""
    """Key of what else of it is in the runtime: what comes and is not warm, or goes and is not unloaded."""
    struck: dict[str, str] = field(default_factory=dict)
    """Backends that took the worker down while they were being loaded, and how; not tried again in this life."""
    crashes: deque[float] = field(default_factory=deque)
    fruitless: int = 0
    """Lives of its worker in a row that it ended, and in which it had answered nothing."""
    checked: int = 0
    """Inferences of the watchdog that it answered."""
    answered: tuple[int, int] = (0, 0)
    """When its worker last ended: inferences answered before that, and those of the watchdog among them."""
    quarantines: int = 0
    retry_at: float | None = None
    """Monotonic second at which it is tried again by itself."""
    asked_at: float = 0.0
    """Monotonic second of the last request; the watchdog's do not count."""
    ready_at: float = 0.0
    load_ms: float = 0.0
    """From LOADING to READY, the last time."""
    loads: int = 0

    @classmethod
    def of(cls, stored: StoredModel, default: tuple[Backend, ...]) -> Instance:
        identity, config = stored.identity, stored.config
        served = Served(f"{identity.name}/{identity.version}", instances=config.instances, priority=config.priority)
        instance = cls(stored, stored.chain(default), served)
        if stored.rejected:
            instance.state, instance.reason = "FAILED", stored.rejected
        return instance

    @property
    def identity(self) -> ModelIdentity:
        return self.stored.identity

    @property
    def name(self) -> str:
        return self.served.name

    @property
    def over(self) -> bool:
        """Neither serving nor on its way, until it is tried again."""
        return self.state in ("FAILED", "QUARANTINED")

    @property
    def degraded(self) -> bool:
        """Whether what is loaded runs on another backend than the one asked for."""
        return self.loaded is None or not is_backend(self.loaded.effective, self.chain[0])

    @property
    def backend(self) -> str:
        """The effective one by its name in the chain, as far as it is there; empty while nothing is loaded."""
        effective = self.loaded.effective if self.loaded is not None else ""
        return next((backend for backend in self.chain if is_backend(effective, backend)), effective)

    @property
    def engine_came(self) -> bool:
        """Whether a build ended, well or not, that it did not look at yet."""
        return self.build is not None and self.build.ended and not self.build.seen

    @property
    def standing(self) -> int:
        """How near it is to serving."""
        if self.state == "READY" or self.evicted:
            return SERVES
        if self.coming():
            return COMES
        return 0 if self.over else 1

    def coming(self) -> bool:
        return self.state in ("LOADING", "BUILDING", "WARMING")

    def new_key(self) -> str:
        """A key that nothing of this version has in a runtime yet."""
        self.loads += 1
        return f"{self.name}#{self.loads}-{id(self):x}"

    def becomes(self, state: InstanceState, reason: str = "") -> None:
        self.state, self.reason = state, reason
        if state == "READY":
            self.ready_at = time.monotonic()

    def has_answered(self, *, requests_only: bool) -> bool:
        """Whether anything in this life of its worker: any inference, or a request."""
        before, checked = self.answered
        new = self.served.completed - before
        return new - (self.checked - checked) > 0 if requests_only else new > 0

    def renew(self) -> None:
        """Start over, with nothing held against it."""
        self.becomes("LOADING")
        self.evicted = False
        self.retry_at = None
        self.struck.clear()
        self.crashes.clear()
        self.fruitless = 0
        if self.build is not None and self.build.failed:
            self.build = None

    def report(self, service_ms: float, row_ms: float, capacity: float = 1.0) -> ModelLoad:
        """Both times at the speed of now; a node about to slow down reports what they will be then."""
        identity, loaded, footprint = self.identity, self.loaded, self.footprint
        build = self.build
        return ModelLoad(
            name=identity.name,
            version=identity.version,
            digest=identity.digest,
            state=self.state,
            in_flight=self.served.in_flight,
            service_ms=service_ms / capacity,
            row_ms=row_ms / capacity,
            deadline_ms=self.stored.config.deadline_ms,
            reason=self.reason,
            progress=build.progress if build is not None and not build.ended else None,
            requested=self.chain[0],
            effective=loaded.effective if loaded is not None and self.state == "READY" else "",
            memory_bytes=None if footprint is None or self.state != "READY" else footprint.box + footprint.device,
            instances=self.served.instances,
            stay=self.stored.config.routing.stay,
            cascade=self.stored.config.declared_cascade,
            decoupled=loaded is not None and loaded.decoupled,
            stateful=self.stored.config.sequence is not None,
            idle_s=self.stored.config.sequence.idle_s if self.stored.config.sequence is not None else 0.0,
        )
