"""The omniscient greedy: each request to the node that would truly answer it first, as things stand.

A reference, not a bound: it places one request after the other and never thinks of the next (``bound`` has the bound).
It shares batching, refusals and the second chance with all policies. It reads of ``world.truth()``, which is the
simulated mesh: ``now``, ``devices`` (``true`` profiles, ``heat``, ``run.ends_s``, ``lanes``, ``memory.load_ms``,
``fault``) and ``network`` (``way`` and ``way_back`` with ``finish``, ``usual_delay_s``, ``is_wan``). What is still on
its way is kept in a record that all routers of one mesh share. Not known even here: noise of runs to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from tests.bench.offload.policy import Request, World
from tests.bench.offload.profiles import run_ms, work_ms

if TYPE_CHECKING:
    from tests.bench.offload.world import Mesh

UNSORTED = 16
"""The class of requests without a priority."""


class _Coming(NamedTuple):
    arrives_s: float
    level: int
    deadline_s: float
    model: int


_COMING: WeakKeyDictionary[Mesh, dict[int, dict[int, _Coming]]] = WeakKeyDictionary()
"""By mesh, node and request: what was sent and may not have arrived yet."""


class Omniscient:
    """Least true completion time; within ``gamma`` of the SLO of it, and in time, the cheapest tier."""

    name = "omniscient"

    def __init__(self, gamma: float = 0.0) -> None:
        self._gamma = gamma

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        mesh: Mesh = world.truth()
        coming = _COMING.setdefault(mesh, {})
        ways = [self._arrival_s(mesh, request, node) for node in nodes]
        ends = [
            self._end_s(mesh, coming.get(node, {}), request, node, arrives_s)
            for node, arrives_s in zip(nodes, ways, strict=True)
        ]
        best = min(ends)
        limit = best + self._gamma * (request.deadline_s - request.born_s)
        near = [i for i, end in enumerate(ends) if end <= limit and (end <= request.deadline_s or end == best)]
        at = min(near, key=lambda i: (_tier(mesh, request, nodes[i]) if self._gamma else 0, ends[i]))
        sent = _Coming(ways[at], request.priority or UNSORTED, request.deadline_s, request.model)
        coming.setdefault(nodes[at], {})[request.id] = sent
        return nodes[at]

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        _COMING.get(world.truth(), {}).get(node, {}).pop(request.id, None)

    def _arrival_s(self, mesh: Mesh, request: Request, node: int) -> float:
        if node == request.origin:
            return mesh.now
        sent_s = mesh.network.way(request.origin, node).finish(mesh.now, request.nbytes)
        return sent_s + mesh.network.usual_delay_s(request.origin, node)

    def _end_s(
        self, mesh: Mesh, coming: dict[int, _Coming], request: Request, node: int, arrives_s: float
    ) -> float:  # fmt: skip
        """When the answer would be back, by true profiles at the present heat."""
        device = mesh.devices[node]
        fault = device.fault
        if fault is not None and fault.share >= 0.5:
            return mesh.now + 1e3
        heat, level = device.heat.at(arrives_s), request.priority or UNSORTED
        rows: dict[int, int] = {}
        for (of, model), lane in device.lanes.items():
            if of <= level:
                ahead = len(lane) if of < level else sum(entry[0] <= request.deadline_s for entry in lane)
                rows[model] = rows.get(model, 0) + ahead
        for each in coming.values():
            if mesh.now < each.arrives_s <= arrives_s and (each.level, each.deadline_s) <= (level, request.deadline_s):
                rows[each.model] = rows.get(each.model, 0) + 1
        free_s = device.run.ends_s if device.run is not None else mesh.now
        free_s += heat * sum(work_ms(device.true[model], count) for model, count in rows.items()) / 1e3
        free_s = max(free_s, mesh.now + device.memory.load_ms(request.model, mesh.now) / 1e3)
        end_s = max(free_s, arrives_s) + heat * run_ms(device.true[request.model]) / 1e3
        if node == request.origin:
            return end_s
        back_s = mesh.network.way_back(request.origin, node).finish(end_s, request.reply_bytes)
        return back_s + mesh.network.usual_delay_s(request.origin, node)


def _tier(mesh: Mesh, request: Request, node: int) -> int:
    if node == request.origin:
        return 0
    return 2 if mesh.network.is_wan(request.origin, node) else 1
