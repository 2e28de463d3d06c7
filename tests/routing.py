"""One node's routing, whole but for its transports: real view, watcher, neighbours and ways; scripted models and hops.

Peers are told of by reports: on a LAN door, on a memory bus, or both. Not here: real transports (``integration``).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

from mesh import subjects
from mesh.deadline import Deadline
from mesh.hop import Context, Reply
from mesh.inquiry import Inquiry
from mesh.membership import NodeView
from mesh.memory_bus import MemoryBroker, MemoryBus
from mesh.messages import ModelLoad, Report, encode_report
from mesh.neighbours import Answer, Neighbours
from mesh.pins import Place
from mesh.router import Router
from mesh.rules import Rule
from mesh.values import ModelIdentity, ModelRef
from mesh.view import View
from mesh.watcher import Watcher
from mesh.ways import NodeWays
from tests.builders import a_model_load, a_report, an_identity
from tests.fakes import ScriptedHop, ScriptedModels, ScriptedProber, a_request, until

ME = "me"
HERE = Place(ME, "shop", "north", "edge")


class Routing:
    """``lan`` and ``wire`` are the hops over doors and over the bus; ``models`` is what this node holds."""

    def __init__(
        self, *held: ModelLoad, router_only: bool = False, max_payload: int = 8 << 20, rule: Rule | None = None
    ) -> None:
        self.models = ScriptedModels(*held)
        self.lan, self.wire = ScriptedHop(), ScriptedHop()
        self.prober = ScriptedProber()
        self.watcher = Watcher("demo", ME)
        self.neighbours = Neighbours(self.watcher, self.prober, None, ME)
        self.view = View(ME, self.watcher, None if router_only else self.models)
        self.ways = NodeWays(self.view, self.neighbours, self.lan, HERE, 2)
        self.router = Router(
            view=self.view,
            ways=self.ways,
            neighbours=self.neighbours,
            rule=rule,
            rng=random.Random(7),
        )
        self.inquiry = Inquiry(self.view, self.ways)
        self.broker = MemoryBroker(max_payload)
        self._seq = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Routing]:
        async with self.watcher.running(), self.neighbours.running(), MemoryBus(self.broker) as bus:
            self.bus = bus
            async with self.watcher.subscribed(bus, ("*",)):
                self.ways.join_bus(bus, self.wire)
                yield self

    def report(self, node: str, *models: ModelLoad, **fields: Any) -> Report:
        """A report with a long ttl: no test here is about silence."""
        self._seq += 1
        defaults: dict[str, Any] = {"ttl_ms": 60_000, "http": "", "seq": self._seq}
        return a_report(node, models=models or (a_model_load(),), **(defaults | fields))

    async def peer(self, node: str, *models: ModelLoad, **fields: Any) -> None:
        """A node with a door on the LAN that works."""
        report = self.report(node, *models, **fields)
        self.prober.doors[f"{node}:1"] = lambda _: Answer(report, rtt_ms=1.0)
        self.neighbours.hear_of(f"{node}:1", "seed")
        await self.neighbours.settled(60)

    async def on_bus(self, node: str, *models: ModelLoad, **fields: Any) -> None:
        """A node that only its heartbeat on the bus tells of."""
        report = self.report(node, *models, **fields)
        await self.bus.publish(subjects.report(report.site, node), encode_report(report))
        await until(lambda: self.watcher.on_bus(node) and self.view_of(node).report.seq >= report.seq)

    async def leaves(self, node: str) -> None:
        """The node said goodbye on the bus."""
        report = self.report(node, state="left")
        await self.bus.publish(subjects.report(report.site, node), encode_report(report))
        await until(lambda: self.view_of(node).state == "left")

    def view_of(self, node: str) -> NodeView:
        view = self.watcher.membership.get(node)
        assert view is not None
        return view

    async def infer(
        self,
        identity: ModelIdentity | None = None,
        *,
        nbytes: int = 16,
        left_ms: float = 60_000.0,
        hops: int = 0,
        visited: tuple[str, ...] = (),
        keep: str = "",
        avoid: tuple[str, ...] = (),
        **parameters: Any,
    ) -> Reply:
        """``parameters`` are those of the request."""
        request, context = a_request(nbytes=nbytes), Context(Deadline.after_ms(left_ms), hops, visited, keep=keep)
        context.avoid = avoid
        request.parameters.update(parameters)
        return await self.router.infer(request, identity or an_identity(), context)

    def in_flight(self, node: str) -> int:
        return self.ways.outlook.in_flight(self.ways.outlook.slots[node])

    def resolve(self, name: str = "resnet", version: str = "", digest: str = "") -> ModelIdentity:
        return self.view.resolve(ModelRef(name, version), digest)
