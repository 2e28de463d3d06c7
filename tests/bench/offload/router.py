"""One router: what it has heard, sent and been answered, which nodes it may use, and the policy that chooses.

Implements `policy.World`. All policies share what is here: the product's links, ejection, suspicion of nodes that were
silent or could not be reached. Not here: the way of requests through the mesh (world.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mesh.estimator import LOCAL_MS, Link
from tests.bench.offload.device import Attempt
from tests.bench.offload.policy import Node, Policy, Report, Request

if TYPE_CHECKING:
    from tests.bench.offload.world import Mesh

ERRORS = 5
EJECT_S = 2.0
MAX_EJECT_S = 60.0
SILENT = 3.0
"""Periods without a report after which a node is not used."""
MIN_SILENT_S = 1.5


class _Trouble:
    """Errors in a row of one node, and how long it is left alone for them."""

    __slots__ = ("errors", "times", "trial", "until_s")

    def __init__(self) -> None:
        self.errors = self.times = 0
        self.until_s = 0.0
        self.trial = False
        """One request was let through after the time was over, and is not answered yet."""


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
        self._mesh = mesh
        self._board = board
        self._replies: dict[int, Report] = {}
        self._sent: dict[int, dict[int, Attempt]] = {node.index: {} for node in self.nodes}
        self._links: dict[tuple[int, int], Link] = {}
        self._trouble: dict[int, _Trouble] = {}
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

    def link(self, node: int, origin: int) -> Link:
        """What the product would know of the way from the request's origin to the node."""
        link = self._links.get((origin, node))
        if link is None:
            near = self.nodes[origin].site == self.nodes[node].site
            link = self._links[origin, node] = Link.lan() if near else Link.bus()
        return link

    def network_ms(self, node: int, request: Request) -> float:
        if node == request.origin:
            return LOCAL_MS
        return self.link(node, request.origin).network_ms(request.nbytes, request.reply_bytes, self.now)

    def candidates(self, request: Request) -> Sequence[int]:
        nodes = self._mesh.network.reachable[request.origin]
        return [n for n in nodes if n != self._tried and (n == self.home or self._usable(n))]

    def _usable(self, node: int) -> bool:
        told, replied = self._board.get(node), self._replies.get(node)
        heard_s = told.heard_s if told is not None else 0.0
        if replied is not None and replied.heard_s > heard_s:
            heard_s = replied.heard_s
        if self.now - heard_s > self._silent_s[node] or heard_s < self._doubted.get(node, -1.0):
            return False
        trouble = self._trouble.get(node)
        return trouble is None or trouble.errors < ERRORS or (self.now >= trouble.until_s and not trouble.trial)

    def truth(self) -> Any:
        return self._mesh

    def choose(self, request: Request, tried: int) -> int | None:
        """Ask the policy; `tried` is the node that refused or failed the request before, or -1."""
        self.now, self._tried = self._mesh.now, tried
        return self.policy.choose(request, self)

    def sends(self, attempt: Attempt) -> None:
        """Note a dispatch."""
        node, request = attempt.node, attempt.request
        self._sent[node][request.id] = attempt
        if node != request.origin:
            attempt.ahead = self.link(node, request.origin).sent(request.nbytes, self.now)
        trouble = self._trouble.get(node)
        if trouble is not None and trouble.errors >= ERRORS:
            trouble.trial = True

    def ends(self, attempt: Attempt, *, ok: bool, error: bool, server_ms: float, unreachable: bool = False) -> None:
        """A dispatch came out: answered in time, refused, late, or failed by an `error` of execution or transport."""
        now = self.now = self._mesh.now
        node, request = attempt.node, attempt.request
        del self._sent[node][request.id]
        took_ms = (now - attempt.sent_s) * 1e3
        if node != request.origin:
            link = self.link(node, request.origin)
            if ok:
                link.answered(request.nbytes, request.reply_bytes, took_ms, server_ms, now, attempt.ahead)
            else:
                link.failed(request.nbytes, now)
        if ok and attempt.report is not None:
            self._replies[node] = attempt.report._replace(heard_s=now)
        if error and node != self.home:
            self._errs(node)
        elif node in self._trouble:
            self._recovers(node, ok)
        if unreachable:
            self._doubted[node] = now
        self.policy.answered(request, node, took_ms, ok, self)

    def _errs(self, node: int) -> None:
        trouble = self._trouble.setdefault(node, _Trouble())
        trouble.errors += 1
        if trouble.errors == ERRORS or trouble.trial:
            trouble.until_s = self.now + min(EJECT_S * 2.0**trouble.times, MAX_EJECT_S)
            trouble.times += 1
            trouble.trial = False

    def _recovers(self, node: int, ok: bool) -> None:
        trouble = self._trouble[node]
        if ok:
            del self._trouble[node]
        else:
            trouble.trial = False
