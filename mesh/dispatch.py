"""Going one way with one request, and learning from what comes of it: the wire, the node, the errors.

Not here: the choice of the way and the next try (``router``), transports (``hop_http``, ``hop_bus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator

from mesh.ejection import Ejection
from mesh.errors import (
    BusUnavailable,
    DeadlineExceeded,
    InstanceLost,
    InvalidRequest,
    MeshError,
    NodeLost,
)
from mesh.forwarding import Forwarding, Try
from mesh.hop import Context, Reply
from mesh.membership import Change
from mesh.neighbours import Neighbours
from mesh.oip.request import InferRequest
from mesh.outlook import Sent
from mesh.retry import RetryBudget
from mesh.rules import FAILED, Kind, Rule, Seen
from mesh.tally import Histogram
from mesh.values import ModelIdentity, Route
from mesh.view import View
from mesh.ways import HERE, Ways


class Dispatch:
    """``rule`` is told of every outcome too."""

    def __init__(self, view: View, ways: Ways, neighbours: Neighbours, rule: Rule, budget: RetryBudget) -> None:
        self._view = view
        self._outlook = ways.outlook
        self._rule = rule
        self._budget = budget
        self._running = 0
        self.ejection = Ejection()
        self._forwarding = Forwarding(view, ways.outlook, neighbours, self.ejection, budget)
        view.watcher.on_change(self._on_change)
        self.reasons: Counter[str] = Counter()
        """Decisions by their reason."""
        self.residuals: dict[Route, Histogram] = {}
        """By how much predictions were wrong, in seconds, by route."""

    def _on_change(self, change: Change) -> None:
        self._forwarding.on_change(change)
        if change.new in ("lost", "left"):
            self.ejection.forget(change.node)

    async def send(self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        """Raises what the other end, or the way there, raises."""
        started, up_ms, token = self._begin(attempt, request, identity, context)
        try:
            if attempt.way.hop is None:
                reply = await self._run(attempt, request, identity, context)
            else:
                reply = await self._forwarding.infer(attempt, request, identity, context, started, up_ms)
        except MeshError as error:
            self._learn(attempt, kind_of(error), started, 0.0)
            if error.load is not None:
                self._view.watcher.observe(attempt.way.target.node, error.load, identity)
            self._forwarding.failed(attempt.way, error)
            raise
        except asyncio.CancelledError:
            self.ejection.neither(attempt.way.target.node)
            raise
        finally:
            self._outlook.ended(attempt.way.slot, token)
        self._learn(attempt, "answer", started, reply.time_ms)
        return reply

    async def stream(
        self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context
    ) -> AsyncGenerator[Reply, None]:
        """As :meth:`send`, of any number of answers. What was predicted is compared with the time to the first; whether
        the node works is judged by the end."""
        started, up_ms, token = self._begin(attempt, request, identity, context)
        node, begun = attempt.way.target.node, False
        if attempt.way.hop is None:
            streamed = self._streamed_here(attempt, request, identity, context)
        else:
            streamed = self._forwarding.stream(attempt, request, identity, context, started, up_ms)
        try:
            async with contextlib.aclosing(streamed) as replies:
                async for reply in replies:
                    if not begun:
                        self._compare(attempt, "answer", started, reply.time_ms)
                        begun = True
                    yield reply
            if not begun:
                self._compare(attempt, "answer", started, 0.0)
            self._judge(attempt, "answer")
        except MeshError as error:
            self._judge(attempt, kind_of(error))
            if not begun:
                self._compare(attempt, kind_of(error), started, 0.0)
            if error.load is not None:
                self._view.watcher.observe(node, error.load, identity)
            self._forwarding.failed(attempt.way, error)
            raise
        except BaseException:  # the caller left
            self.ejection.neither(node)
            raise
        finally:
            self._outlook.ended(attempt.way.slot, token)

    def _begin(
        self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context
    ) -> tuple[float, float, int]:
        """Note what goes there: now, the predicted way up in milliseconds, and the token of its end."""
        self.reasons[attempt.reason] += 1
        started, at = time.monotonic(), attempt.way.slot
        up_ms = float(self._outlook.up_ms(at, attempt.ask.nbytes, started))
        row_ms = float(self._outlook.of(identity)[1][at])
        due = Sent(started + up_ms / 1e3, request.priority, context.deadline.at, row_ms)
        return started, up_ms, self._outlook.send(at, due)

    async def _streamed_here(
        self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context
    ) -> AsyncGenerator[Reply, None]:
        local = self._view.local
        assert local is not None  # noqa: S101 - only this node's own way has no hop
        self._running += 1
        try:
            bodies = local.stream(request, identity, attempt.deadline(context.deadline))
            async with contextlib.aclosing(bodies):
                async for body in bodies:
                    yield Reply(body, self._view.node, "local", context.hops)
        except InstanceLost:
            self._budget.note_lost(self._running, time.monotonic(), self._view.node)
            raise
        finally:
            self._running -= 1

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

    def _learn(self, attempt: Try, kind: Kind, started: float, server_ms: float) -> None:
        """What the outcome says of the node: its residual, its errors, and the rule's own state."""
        if attempt.predicted is not None or kind != "answer":
            self._judge(attempt, kind)
            self._compare(attempt, kind, started, server_ms)

    def _judge(self, attempt: Try, kind: Kind) -> None:
        """Whether the node works."""
        if attempt.way.slot == HERE:
            return
        if kind == "error":
            self.ejection.failed(attempt.way.target.node, time.monotonic())
        elif kind == "answer":
            self.ejection.succeeded(attempt.way.target.node)
        else:
            self.ejection.neither(attempt.way.target.node)

    def _compare(self, attempt: Try, kind: Kind, started: float, server_ms: float) -> None:
        """What came with what was predicted, if anything was."""
        way, ask, predicted = attempt.way, attempt.ask, attempt.predicted
        if predicted is None:
            return
        now, node = time.monotonic(), way.target.node
        took_ms = (now - started) * 1e3
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


def kind_of(error: MeshError) -> Kind:
    """What an error says of the node: deadlines and refusals are no fault of it, a wrong request is the caller's, and
    the bus is ours."""
    if isinstance(error, DeadlineExceeded):
        return "late"
    if isinstance(error, NodeLost):
        return "error"
    if error.refused or isinstance(error, (BusUnavailable, InvalidRequest)) or error.status in (404, 409, 422, 501):
        return "refusal"
    return "error"
