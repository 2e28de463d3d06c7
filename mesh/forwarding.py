"""A request on its way to another node: what the link, the wire and the view learn from it, and when it is given up.

Not here: the choice of the way (``router``), what the outcome says of the node (``dispatch``), transports
(``hop_http``, ``hop_bus``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator

import msgspec

from mesh.deadline import Deadline
from mesh.ejection import Ejection
from mesh.errors import DeadlineExceeded, MeshError, ModelNotFound, ModelNotReady, NodeLost, NodeUnreachable
from mesh.estimator import Ask, Estimate
from mesh.hop import Context, Reply
from mesh.membership import Change
from mesh.neighbours import Neighbours
from mesh.oip.request import InferRequest
from mesh.outlook import Outlook
from mesh.retry import LOST, RetryBudget
from mesh.under_way import UnderWay
from mesh.values import ModelIdentity
from mesh.view import View
from mesh.ways import Way


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


class Forwarding:
    """Belongs to one router, and shares what it knows."""

    def __init__(
        self, view: View, outlook: Outlook, neighbours: Neighbours, ejection: Ejection, budget: RetryBudget
    ) -> None:
        self._view = view
        self._outlook = outlook
        self._neighbours = neighbours
        self._ejection = ejection
        self._budget = budget
        self._under_way = UnderWay()

    def on_change(self, change: Change) -> None:
        """What is under way to a node that was lost is given up."""
        self._under_way.on_change(change)

    async def infer(
        self,
        attempt: Try,
        request: InferRequest,
        identity: ModelIdentity,
        context: Context,
        started: float,
        up_ms: float,
    ) -> Reply:
        transfer = self._sent(attempt, identity, started)
        try:
            reply = await self._ask(attempt, request, identity, context, up_ms)
        except BaseException as error:
            self._unanswered(attempt, transfer, error)
            raise
        self._answered(attempt, identity, transfer, reply, started)
        return reply

    async def stream(
        self,
        attempt: Try,
        request: InferRequest,
        identity: ModelIdentity,
        context: Context,
        started: float,
        up_ms: float,
    ) -> AsyncGenerator[Reply, None]:
        way, node, begun = attempt.way, attempt.way.target.node, False
        assert way.hop is not None  # noqa: S101 - only this node's own way has no hop
        context = msgspec.structs.replace(context, deadline=attempt.deadline(context.deadline))
        transfer = self._sent(attempt, identity, started)
        try:
            replies = way.hop.stream(way.target, request, identity, context, up_ms)
            with self._under_way.stream(node) as sent:
                async with contextlib.aclosing(replies):
                    while True:
                        sent.check()
                        with sent.one():
                            reply = await anext(replies, None)
                        if reply is None:
                            break
                        if not begun:
                            self._answered(attempt, identity, transfer, reply, started)
                            begun = True
                        reply.node = reply.node or node
                        yield reply
            self._unanswered(attempt, transfer)
        except (ModelNotFound, *LOST) as error:
            self._unanswered(attempt, transfer)
            raise self._missed(error, way, identity) from None
        except BaseException as error:
            self._unanswered(attempt, transfer, error)
            raise

    def _sent(self, attempt: Try, identity: ModelIdentity, now: float) -> int:
        """The request is on the wire; returns the token of its transfer."""
        way, predicted = attempt.way, attempt.predicted
        assert way.link is not None  # noqa: S101 - every way to another node has one
        expected = self._outlook.of(identity)[0][way.slot]
        there_ms = predicted.wait_ms + predicted.service_ms if predicted else float(expected)
        transfer = way.link.sent(attempt.ask.nbytes, now, there_ms)
        self._outlook.wire(way.slot, now)
        self._ejection.sent(way.target.node, now)
        if way.door is not None:
            self._neighbours.used(way.door)
        return transfer

    def _answered(self, attempt: Try, identity: ModelIdentity, transfer: int, reply: Reply, started: float) -> None:
        now, way, node = time.monotonic(), attempt.way, attempt.way.target.node
        assert way.link is not None  # noqa: S101 - as above
        way.link.answered(transfer, reply.body.nbytes, (now - started) * 1e3, reply.time_ms, now)
        self._outlook.wire(way.slot, now)
        if way.door is None:
            self._view.watcher.answered_on_bus(node)
        if reply.load is not None and reply.node in ("", node):
            self._view.watcher.observe(node, reply.load, identity)
        reply.node = reply.node or node

    def _unanswered(self, attempt: Try, transfer: int, error: BaseException | None = None) -> None:
        """The transfer ended, unless it had before."""
        now, link = time.monotonic(), attempt.way.link
        assert link is not None  # noqa: S101 - as above
        if isinstance(error, DeadlineExceeded) and error.load is None:
            link.failed(transfer, now)
        else:
            link.up.ended(transfer, now)
        self._outlook.wire(attempt.way.slot, now)

    async def _ask(
        self, attempt: Try, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        way, node = attempt.way, attempt.way.target.node
        assert way.hop is not None  # noqa: S101 - as above
        if attempt.recall_ms > 0.0:
            context = msgspec.structs.replace(context, deadline=attempt.deadline(context.deadline))
        try:
            with self._under_way.to(node):
                return await way.hop.infer(way.target, request, identity, context, up_ms)
        except (ModelNotFound, *LOST) as error:
            raise self._missed(error, way, identity) from None

    def _missed(self, error: MeshError, way: Way, identity: ModelIdentity) -> MeshError:
        """What it counts as that the node has no such model, or that it was lost."""
        if isinstance(error, ModelNotFound):  # settled by a node's report: what it unloaded since, another may have
            return ModelNotReady(error.text) if identity.digest else error
        if not error.refused:
            self._budget.note_lost(self._outlook.in_flight(way.slot), time.monotonic(), way.target.node)
        return error

    def failed(self, way: Way, error: MeshError) -> None:
        """Look again at a node that was lost."""
        if not isinstance(error, NodeLost) or way.hop is None:
            return
        if way.door is not None:
            self._neighbours.broken(way.door)
        elif isinstance(error, NodeUnreachable):
            self._view.watcher.suspect(way.target.node)
