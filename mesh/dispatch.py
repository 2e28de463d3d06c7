"""Going one way with one request, and learning from what comes of it: the wire, the node, the errors.

Not here: the choice of the way and the next try (``router``), transports (``hop_http``, ``hop_bus``).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec

from mesh.deadline import Deadline
from mesh.ejection import Ejection
from mesh.errors import (
    BusUnavailable,
    DeadlineExceeded,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    ModelNotReady,
    NodeLost,
    NodeUnreachable,
)
from mesh.estimator import Ask, Estimate
from mesh.hop import Context, Reply
from mesh.membership import Change
from mesh.neighbours import Neighbours
from mesh.oip.request import InferRequest
from mesh.outlook import Sent
from mesh.retry import LOST, RetryBudget
from mesh.rules import FAILED, Kind, Rule, Seen
from mesh.tally import Histogram
from mesh.under_way import UnderWay
from mesh.values import ModelIdentity, Route
from mesh.view import View
from mesh.ways import HERE, Way, Ways


class Try(msgspec.Struct):
    """One request and the place that was chosen for it."""

    way: Way
    ask: Ask
    reason: str
    predicted: Estimate | None = None
    """None where there was no need to predict."""
    recall_ms: float = 0.0
    """What the best other place would need: until so long before the deadline a node that will not be in time may give
    the request back with use."""

    def deadline(self, whole: Deadline) -> Deadline:
        return whole.with_recall(self.recall_ms) if self.recall_ms > 0.0 else whole


class Dispatch:
    """``rule`` is told of every outcome too."""

    def __init__(self, view: View, ways: Ways, neighbours: Neighbours, rule: Rule, budget: RetryBudget) -> None:
        self._view = view
        self._outlook = ways.outlook
        self._neighbours = neighbours
        self._rule = rule
        self._budget = budget
        self._running = 0
        self.ejection = Ejection()
        self.under_way = UnderWay()
        view.watcher.on_change(self._on_change)
        self.reasons: Counter[str] = Counter()
        """Decisions by their reason."""
        self.residuals: dict[Route, Histogram] = {}
        """By how much predictions were wrong, in seconds, by route."""

    def _on_change(self, change: Change) -> None:
        self.under_way.on_change(change)
        if change.new in ("lost", "left"):
            self.ejection.forget(change.node)

    async def send(self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        """Raises what the other end, or the way there, raises."""
        self.reasons[attempt.reason] += 1
        started, at = time.monotonic(), attempt.way.slot
        up_ms = float(self._outlook.up_ms(at, attempt.ask.nbytes, started))
        row_ms = float(self._outlook.of(identity)[1][at])
        token = self._outlook.send(at, Sent(started + up_ms / 1e3, request.priority, context.deadline.at, row_ms))
        try:
            if attempt.way.hop is None:
                reply = await self._run(attempt, request, identity, context)
            else:
                reply = await self._forward(attempt, request, identity, context, started, up_ms)
        except MeshError as error:
            self._learn(attempt, kind_of(error), started, 0.0)
            if error.load is not None:
                self._view.watcher.observe(attempt.way.target.node, error.load, identity)
            self._note(attempt.way, error)
            raise
        except asyncio.CancelledError:
            self.ejection.neither(attempt.way.target.node)
            raise
        finally:
            self._outlook.ended(at, token)
        self._learn(attempt, "answer", started, reply.time_ms)
        return reply

    async def _run(self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        local = self._view.local
        assert local is not None  # noqa: S101 - only this node's own way has no hop
        self._running += 1
        try:
            body = await local.infer(request, identity, attempt.deadline(context.deadline))
        except InstanceLost:
            self._budget.note_lost(self._running, time.monotonic(), self._view.node)
            raise
        finally:
            self._running -= 1
        return Reply(body, self._view.node, "local", context.hops)

    async def _forward(
        self,
        attempt: Try,
        request: InferRequest,
        identity: ModelIdentity,
        context: Context,
        started: float,
        up_ms: float,
    ) -> Reply:
        way, outlook, nbytes = attempt.way, self._outlook, attempt.ask.nbytes
        at, node, link, predicted = way.slot, way.target.node, way.link, attempt.predicted
        assert link is not None  # noqa: S101 - every way to another node has one
        there_ms = predicted.wait_ms + predicted.service_ms if predicted else float(outlook.of(identity)[0][at])
        transfer = link.sent(nbytes, started, there_ms)
        outlook.wire(at, started)
        self.ejection.sent(node, started)
        if way.door is not None:
            self._neighbours.used(way.door)
        try:
            reply = await self._ask(attempt, request, identity, context, up_ms)
        except BaseException as error:
            now = time.monotonic()
            if isinstance(error, DeadlineExceeded) and error.load is None:
                link.failed(transfer, now)
            else:
                link.up.ended(transfer, now)
            outlook.wire(at, now)
            raise
        now = time.monotonic()
        link.answered(transfer, reply.body.nbytes, (now - started) * 1e3, reply.time_ms, now)
        outlook.wire(at, now)
        if reply.load is not None and reply.node in ("", node):
            self._view.watcher.observe(node, reply.load, identity)
        reply.node = reply.node or node
        return reply

    async def _ask(
        self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        way, node = attempt.way, attempt.way.target.node
        assert way.hop is not None  # noqa: S101 - as above
        if attempt.recall_ms > 0.0:
            context = msgspec.structs.replace(context, deadline=attempt.deadline(context.deadline))
        try:
            with self.under_way.to(node):
                return await way.hop.infer(way.target, request, identity, context, up_ms)
        except ModelNotFound as error:
            if identity.digest:  # settled by a node's report: what it unloaded since, another may have
                raise ModelNotReady(error.text) from None
            raise
        except LOST as error:
            if not error.refused:
                self._budget.note_lost(self._outlook.in_flight(way.slot), time.monotonic(), node)
            raise

    def _learn(self, attempt: Try, kind: Kind, started: float, server_ms: float) -> None:
        """What the outcome says of the node: its residual, its errors, and the rule's own state."""
        way, ask, predicted = attempt.way, attempt.ask, attempt.predicted
        if predicted is None and kind == "answer":
            return
        now, node = time.monotonic(), way.target.node
        took_ms = (now - started) * 1e3
        if way.slot != HERE:
            if kind == "error":
                self.ejection.failed(node, now)
            elif kind == "answer":
                self.ejection.succeeded(node)
            else:
                self.ejection.neither(node)
        if predicted is None:
            return
        seen_ms = FAILED * ask.given_ms if kind == "error" else took_ms
        raw_ms = predicted.total_ms - predicted.bias_ms
        if kind != "refusal" and self._outlook.names[way.slot] == node:  # the slot may be another's by now
            self._outlook.residuals[way.slot].learn(seen_ms, raw_ms, ask.given_ms, now)
            self._outlook.learned(way.slot, now)
        if kind == "answer":
            route = way.target.route
            histogram = self.residuals.get(route) or self.residuals.setdefault(route, Histogram())
            histogram.observe(abs(took_ms - predicted.total_ms) / 1e3)
        self._rule.answered(way.slot, ask, Seen(took_ms, server_ms, predicted.network_ms, kind), now)

    def _note(self, way: Way, error: MeshError) -> None:
        if not isinstance(error, NodeLost) or way.hop is None:
            return
        if way.door is not None:
            self._neighbours.broken(way.door)
        elif isinstance(error, NodeUnreachable):
            self._view.watcher.suspect(way.target.node)


def kind_of(error: MeshError) -> Kind:
    """What an error says of the node: deadlines and refusals are no fault of it, a wrong request is the caller's, and
    the bus is ours."""
    if isinstance(error, DeadlineExceeded):
        return "late"
    if isinstance(error, NodeLost):
        return "error"
    if error.refused or isinstance(error, (BusUnavailable, InvalidRequest)) or error.status in (404, 422, 501):
        return "refusal"
    return "error"
