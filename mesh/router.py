"""``Router.infer``: ways from the view, a pure decision, send, and at the first door retry elsewhere.

The same class routes in the agent (itself, LAN peers, the cloud), in ``mesh-cloud`` (all nodes) and in the SDK (the
doors it found). Not here: the rule (``balancer``), the estimate (``estimator``), which ways there are (``ways``),
transports (``hop_http``, ``hop_bus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator

from mesh.balancer import Policy, decide
from mesh.errors import (
    BusUnavailable,
    InstanceLost,
    MeshError,
    ModelNotFound,
    ModelNotReady,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
)
from mesh.estimator import Ask, Dispatches
from mesh.hop import Context, Reply
from mesh.membership import Change
from mesh.neighbours import Neighbours
from mesh.oip.request import InferRequest
from mesh.retry import LOST, RetryBudget
from mesh.values import ModelIdentity, ModelMetadata
from mesh.view import LocalModels, View
from mesh.ways import Way, Ways

log = logging.getLogger(__name__)

MAX_MET = 3
"""How often one request may be refused by busy nodes, or lose what runs it, before that is its answer.

A full mesh must not carry each request past all its nodes, nor a request that kills workers past all of them.
"""
_COUNTED = frozenset(cls.code for cls in (Overloaded, InstanceLost, NodeLost))


class UnderWay:
    """Requests sent and not yet answered, by node: a box that lost its power closes no connection.

    When the view gives a node up, what was sent there ends with ``NodeLost`` in place of waiting for its deadline. By
    cancelling the task from outside, as ``asyncio.timeout`` does: a task for each exchange would cost too much.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, dict[asyncio.Task[object], bool]] = {}
        """By node, and whether it was given up."""

    def on_change(self, change: Change) -> None:
        if change.new == "lost":
            tasks = self._tasks.get(change.node, {})
            for task, given_up in tasks.items():
                tasks[task] = given_up or task.cancel()

    @contextlib.contextmanager
    def to(self, node: str) -> Iterator[None]:
        """Inside, the current task is under way to ``node``."""
        task, tasks = asyncio.current_task(), self._tasks.setdefault(node, {})
        assert task is not None  # noqa: S101 - coroutines run in tasks
        tasks[task] = False
        given_up, others = False, 0
        try:
            try:
                yield
            finally:
                given_up = tasks.pop(task)
                others = self._uncancelled(task) if given_up else 0
                if not tasks:
                    self._tasks.pop(node, None)
        except asyncio.CancelledError:
            if not given_up or others:
                raise
            raise NodeLost(f"node {node} was lost while it held the request") from None

    @staticmethod
    def _uncancelled(task: asyncio.Task[object]) -> int:
        """Take our cancellation back; how many others there are (Python 3.10 cannot tell)."""
        uncancel = getattr(task, "uncancel", None)
        return uncancel() if uncancel is not None else 0


class Router:
    """Chooses and sends. ``dispatches`` is shared with ``ways``, whose candidates count what was sent from here."""

    def __init__(
        self,
        *,
        view: View,
        ways: Ways,
        neighbours: Neighbours,
        dispatches: Dispatches,
        policy: Policy | None = None,
        retry_ratio: float = 0.10,
        rng: random.Random | None = None,
    ) -> None:
        self._view = view
        self._ways = ways
        self._neighbours = neighbours
        self._dispatches = dispatches
        self._policy = policy or Policy()
        self._budget = RetryBudget(ratio=retry_ratio)
        self._rng = rng or random.Random()
        self._running = 0
        self.retries: Counter[str] = Counter()
        """Tries after the first, by the code of the error that ended the one before."""
        self._under_way = UnderWay()
        view.watcher.on_change(self._under_way.on_change)

    async def infer(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        """Answer from the place that will answer in time.

        Only the first door of a request tries elsewhere again (DESIGN D16); a later one whose forward failed may still
        run it itself. Raises the last error when nothing is left to try, or the one before it that leaves open whether
        the work ran, if the last was only a refusal.
        """
        tried: set[tuple[str, str]] = set()
        met: Counter[str] = Counter()
        failed: MeshError | None = None
        context.deadline.check()
        self._budget.note_request(time.monotonic())
        while True:
            way, reason = self._choose(request, identity, context, tried)
            if way is None:
                raise failed or self._nowhere(identity, reason)
            try:
                return await self._send(way, request, identity, context)
            except MeshError as error:
                failed = error if failed is None or failed.refused or not error.refused else failed
                met[error.code] += 1
                self._learn_failure(way, error)
                enough = error.code in _COUNTED and met[error.code] >= MAX_MET
                if (context.hops > 0 and way.hop is None) or enough or not self._may_retry(error, context):
                    raise failed from None
                self.retries[error.code] += 1
                log.debug("%s on %s failed (%s), trying elsewhere", identity.name, way.key, error.code)
                tried.add(way.key)
                if not isinstance(error, (NodeUnreachable, BusUnavailable)):
                    tried.update((way.candidate.node, path) for path in ("http", "bus"))

    async def metadata(self, identity: ModelIdentity, context: Context) -> ModelMetadata:
        """The model's metadata, from here or from a node that holds it."""
        view = self._view
        if view.local is not None and (mine := view.local.load(identity)) is not None and mine.identity == identity:
            with contextlib.suppress(ModelNotReady):
                return view.local.metadata(identity)
        if context.hops > 0:
            raise ModelNotReady(f"model {identity.name!r} is not loaded on node {view.node}")
        failed = self._nowhere(identity, "no node that holds it can be asked")
        for way in self._ways.ways(identity, context, 0):
            if way.hop is None:
                continue
            try:
                return await way.hop.metadata(way.target, identity, context.deadline)
            except MeshError as error:
                failed = error
        raise failed

    def _choose(
        self, request: InferRequest, identity: ModelIdentity, context: Context, tried: set[tuple[str, str]]
    ) -> tuple[Way | None, str]:
        """The way to take, or None and the reason."""
        nbytes = request.body().nbytes
        ways = self._ways.ways(identity, context, nbytes)
        if tried:
            ways = [w for w in ways if w.key not in tried and (context.hops == 0 or w.hop is None)]
        if len(ways) == 1:
            return ways[0], "the only way"
        if not ways and not tried:
            return None, self._ways.why_none(identity, context, nbytes)
        ask = Ask(context.deadline.left_ms(), nbytes, priority=request.priority)
        decision = decide(ask, [w.candidate for w in ways], time.monotonic(), self._rng, self._policy)
        chosen = next((way for way in ways if way.key == (decision.node, decision.path)), None)
        return chosen, decision.reason

    async def _send(self, way: Way, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        if way.hop is None:
            local = self._view.local
            assert local is not None  # noqa: S101 - only this node's own way has no hop
            return await self._run(local, request, identity, context)
        reply = await self._forward(way, request, identity, context)
        reply.node = reply.node or way.candidate.node
        return reply

    async def _run(self, local: LocalModels, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        self._running += 1
        try:
            body = await local.infer(request, identity, context.deadline)
        except InstanceLost:
            self._budget.note_lost(self._running, time.monotonic(), self._view.node)
            raise
        finally:
            self._running -= 1
        return Reply(body, self._view.node, "local", context.hops)

    async def _forward(self, way: Way, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        node, link, nbytes = way.candidate.node, way.candidate.link, request.body().nbytes
        assert link is not None and way.hop is not None  # noqa: S101, PT018 - every way to another node has both
        started = time.monotonic()
        up_ms = link.rtt_ms / 2 + (link.queued_bytes + nbytes) / link.up_bytes_per_ms
        ticket = self._dispatches.add(node, way.candidate.model.service_ms or self._policy.service_ms, started)
        ahead = link.sent(nbytes, started)
        answered = False
        try:
            if way.door is not None:
                self._neighbours.used(way.door)
            with self._under_way.to(node):
                reply = await way.hop.infer(way.target, request, identity, context, up_ms)
            now = time.monotonic()
            link.answered(nbytes, reply.body.nbytes, (now - started) * 1e3, reply.time_ms, now, ahead)
            answered = True
        except ModelNotFound as error:
            if identity.digest:  # settled by a node's report: what it unloaded since, another may have
                raise ModelNotReady(error.text) from None
            raise
        except LOST as error:
            if not error.refused:
                self._budget.note_lost(self._dispatches.in_flight(node), time.monotonic(), node)
            raise
        finally:
            if not answered:
                link.failed(nbytes, time.monotonic())
            self._dispatches.done(node, ticket)
        if reply.load is not None and reply.node in ("", node):
            self._view.watcher.observe(node, reply.load, identity)
        return reply

    def _learn_failure(self, way: Way, error: MeshError) -> None:
        if not isinstance(error, NodeLost) or way.hop is None:
            return
        node = way.candidate.node
        if way.door is not None:
            self._neighbours.broken(way.door)
        elif isinstance(error, NodeUnreachable):
            self._view.watcher.suspect(node)

    def _may_retry(self, error: MeshError, context: Context) -> bool:
        return error.retryable and not context.deadline.expired and self._budget.may_retry(error, time.monotonic())

    def _nowhere(self, identity: ModelIdentity, reason: str) -> MeshError:
        for load in self._view.here(identity.name):
            if load.version == identity.version and load.state != "READY":
                reason = f": {load.reason}" if load.reason else ""
                return ModelNotReady(f"model {identity.name!r} is {load.state} on this node{reason}")
        for node, load in self._view.elsewhere(identity.name):
            if load.identity == identity and load.reason and load.state != "READY":
                return NoReadyInstance(f"model {identity.name!r} is {load.state} on node {node}: {load.reason}")
        return NoReadyInstance(f"no node can run model {identity.name!r} now: {reason}")
