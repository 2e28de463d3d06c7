"""One router: what it has heard, sent and been answered, which nodes it may use, and the policy that chooses.

Implements `policy.World`. All policies share what is here: the product's links, ejection, suspicion of nodes that were
silent or could not be reached. Not here: the way of requests through the mesh (world.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from mesh.ejection import Ejection
from mesh.link import WAN, Link, Wire
from mesh.outlook import LOCAL_MS
from tests.bench.offload.device import Attempt
from tests.bench.offload.policy import Node, Policy, Report, Request

if TYPE_CHECKING:
    from tests.bench.offload.world import Mesh

SILENT = 3.0
"""Periods without a report after which a node is not used."""
MIN_SILENT_S = 1.5


class Router:
    """The router of `home`, or a central one that knows no node by itself where `home` is None."""

    def __init__(
        self, mesh: Mesh, number: int, home: int | None, board: dict[int, Report], luck: random.Random
    ) -> None:
        self.now = 0.0
        self.luck = luck
        self.nodes: Sequence[Node] = mesh.environment.nodes
        self.number = number
        self.home = home
        self.policy: Policy
        self.came: Literal["answer", "error", "late", "refusal"] = "answer"
        """How the dispatch ended that the policy is told of."""
        self._mesh = mesh
        self._board = board
        self._replies: dict[int, Report] = {}
        self._sent: dict[int, dict[int, Attempt]] = {node.index: {} for node in self.nodes}
        self._links: dict[tuple[int, int], Link] = {}
        self._wires: dict[int, tuple[Wire, Wire]] = {}
        self._around = [] if home is None else [n for n in mesh.network.reachable[home] if self._is_neighbour(n)]
        if home is not None:
            mesh.devices[home].uplink = self._wan(home)[0]
        self._ejection = Ejection()
        self._ejected: frozenset[str] = frozenset()
        self._doubted: dict[int, float] = {}
        self._tried = -1
        reporting = mesh.reporting
        self._silent_s = [max(SILENT * reporting.period_s(node.index), MIN_SILENT_S) for node in self.nodes]

    def report(self, node: int) -> Report | None:
        if node == self.home:
            return self._mesh.devices[node].report(self.now)
        told, replied = self._board.get(node), self._replies.get(node)
        if told is None or (replied is not None and replied.taken_s > told.taken_s):
            return replied
        return told

    def in_flight(self, node: int) -> int:
        return len(self._sent[node])

    def sent(self, node: int) -> Sequence[tuple[float, int]]:
        return [(attempt.sent_s, attempt.request.model) for attempt in self._sent[node].values()]

    def outstanding(self) -> list[Attempt]:
        return [attempt for sent in self._sent.values() for attempt in sent.values()]

    def _is_neighbour(self, node: int) -> bool:
        return self.home is not None and node != self.home and self.nodes[node].site == self.nodes[self.home].site

    def _wan(self, origin: int) -> tuple[Wire, Wire]:
        """The site's way out and in, which all its links to other sites share."""
        wires = self._wires.get(origin)
        if wires is None:
            wires = self._wires[origin] = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
        return wires

    def link(self, node: int, origin: int) -> Link:
        """What the product would know of the way from the request's origin to the node."""
        link = self._links.get((origin, node))
        if link is None:
            near = self.nodes[origin].site == self.nodes[node].site
            link = self._links[origin, node] = Link() if near else Link(WAN, *self._wan(origin))
            link.pinged(2e3 * self._mesh.network.usual_delay_s(origin, node))
        return link

    def _listen(self) -> None:
        """Neighbours tell what they have on the uplink that we share."""
        for node in self._around:
            report = self.report(node)
            if report is not None and self.home is not None:
                self._wan(self.home)[0].told(str(node), report.uplink_bytes, report.heard_s)

    def network_ms(self, node: int, request: Request) -> float:
        if node == request.origin:
            return LOCAL_MS
        return self.link(node, request.origin).network_ms(request.nbytes, request.reply_bytes, self.now)

    def candidates(self, request: Request) -> Sequence[int]:
        nodes = self._mesh.network.reachable[request.origin]
        self._ejected = self._ejection.ejected(self.now, len(nodes) - 1)
        return [n for n in nodes if n != self._tried and (n == self.home or self._usable(n))]

    def _usable(self, node: int) -> bool:
        told, replied = self._board.get(node), self._replies.get(node)
        heard_s = told.heard_s if told is not None else 0.0
        if replied is not None and replied.heard_s > heard_s:
            heard_s = replied.heard_s
        if self.now - heard_s > self._silent_s[node] or heard_s < self._doubted.get(node, -1.0):
            return False
        return str(node) not in self._ejected

    def truth(self) -> Any:
        return self._mesh

    def choose(self, request: Request, tried: int) -> int | None:
        """Ask the policy; `tried` is the node that refused or failed the request before, or -1."""
        self.now, self._tried = self._mesh.now, tried
        if getattr(self.policy, "listens", True):
            self._listen()
        return self.policy.choose(request, self)

    def sends(self, attempt: Attempt) -> None:
        """Note a dispatch."""
        node, request = attempt.node, attempt.request
        self._sent[node][request.id] = attempt
        if node != request.origin:
            report = self.report(node)
            if report is not None and report.service_ms:
                queued_ms = sum([sum(bins) for _, bins in report.queued])
                attempt.expected_ms = report.free_ms + queued_ms + report.service_ms[request.model]
            attempt.token = self.link(node, request.origin).sent(request.nbytes, self.now, attempt.expected_ms)
        self._ejection.sent(str(node), self.now)

    def hears(self, report: Report) -> None:
        """Take what a node says of itself on an answer, a refusal, or a request that it passes on to ours."""
        now = self._mesh.now
        known = self._replies.get(report.node)
        if report.node != self.home and (known is None or known.taken_s <= report.taken_s):
            self._replies[report.node] = report._replace(heard_s=now)

    def ends(self, attempt: Attempt, *, ok: bool, error: bool, server_ms: float, unreachable: bool = False) -> None:
        """A dispatch came out: answered in time, refused, late, or failed by an `error` of execution or transport."""
        now = self.now = self._mesh.now
        node, request = attempt.node, attempt.request
        del self._sent[node][request.id]
        took_ms = (now - attempt.sent_s) * 1e3
        late = now >= request.deadline_s and attempt.report is None
        self.came = "answer" if ok else "error" if error else "late" if late else "refusal"
        if node != request.origin:
            link = self.link(node, request.origin)
            if ok:
                link.answered(attempt.token, request.reply_bytes, took_ms, server_ms, now)
            elif self.came == "late":
                link.failed(attempt.token, now)
            else:
                link.up.ended(attempt.token, now)
        if attempt.report is not None:
            self.hears(attempt.report)
        if error and node != self.home:
            self._ejection.failed(str(node), now)
        elif ok:
            self._ejection.succeeded(str(node))
        else:
            self._ejection.neither(str(node))
        if unreachable:
            self._doubted[node] = now
        self.policy.answered(request, node, took_ms, ok, self)
