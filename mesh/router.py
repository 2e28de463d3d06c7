"""``Router.infer``: survey the ways, a pure decision, go it, and at the first door try again elsewhere.

The same class routes in the agent (itself, LAN peers, the cloud), in ``mesh-cloud`` (all nodes) and in the SDK (the
doors it found). Not here: the rule (``rules``, ``balancer``), the prediction (``estimator``), which ways there are
(``ways``), going one of them and learning from it (``dispatch``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from math import inf

from mesh import hedging, sequence_steps
from mesh.balancer import Decision
from mesh.dispatch import Dispatch
from mesh.errors import (
    BusUnavailable,
    InstanceLost,
    MeshError,
    NodeLost,
    NodeUnreachable,
    NoReadyInstance,
    Overloaded,
)
from mesh.estimator import Ask
from mesh.forwarding import Try
from mesh.hop import Context, Reply
from mesh.neighbours import Neighbours
from mesh.oip.request import InferRequest
from mesh.outlook import LOCAL_MS
from mesh.pins import Pin
from mesh.retry import RetryBudget
from mesh.rules import Ours, Rule
from mesh.values import ModelIdentity
from mesh.view import View
from mesh.ways import HERE, Ways

log = logging.getLogger(__name__)

PLACED = frozenset(("mesh_stay", "mesh_node", "mesh_site", "mesh_tier", sequence_steps.RUN, hedging.PARAMETER))
"""Parameters with which a request may not run just here, or needs to know of another place too."""
MAX_SURVEYS = 3
MAX_MET = {Overloaded.code: 2, InstanceLost.code: 3, NodeLost.code: 3}
"""How often one request may be refused by busy nodes, or lose what runs it, before that is its answer.

A full mesh must not carry each request past all its nodes, nor a request that kills workers past all of them.
"""


class Router:
    """Chooses and sends, and learns from what comes of it."""

    def __init__(
        self,
        *,
        view: View,
        ways: Ways,
        neighbours: Neighbours,
        rule: Rule | None = None,
        retry_ratio: float = 0.10,
        rng: random.Random | None = None,
    ) -> None:
        self._view = view
        self._ways = ways
        self._rule = rule or Ours()
        self._budget = RetryBudget(ratio=retry_ratio)
        self._hedges = hedging.Hedges()
        self._rng = rng or random.Random()
        self.retries: Counter[str] = Counter()
        """Tries after the first, by the code of the error that ended the one before."""
        self.dispatch = Dispatch(view, ways, neighbours, self._rule, self._budget)

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
        self._budget.note_request(now := time.monotonic())
        self._hedges.note_request(now)
        given_ms = context.deadline.left_ms()
        while True:
            choice = self._choose(request, identity, context, tried, given_ms)
            if isinstance(choice, MeshError):
                raise failed or choice
            try:
                if hedging.wants(request.parameters):
                    reply = await self._hedged(choice, request, identity, context, tried, given_ms)
                else:
                    reply = await self.dispatch.send(choice, request, identity, context)
            except MeshError as error:
                failed = self._again(error, failed, choice, context, tried, met)
            else:
                reply.via = choice.way.target.node
                return reply

    async def stream(
        self, request: InferRequest, identity: ModelIdentity, context: Context
    ) -> AsyncGenerator[Reply, None]:
        """As :meth:`infer`, of any number of answers. Once the first of them went out an error is final."""
        tried: set[tuple[str, str]] = set()
        met: Counter[str] = Counter()
        failed: MeshError | None = None
        context.deadline.check()
        self._budget.note_request(time.monotonic())
        given_ms = context.deadline.left_ms()
        while True:
            choice = self._choose(request, identity, context, tried, given_ms)
            if isinstance(choice, MeshError):
                raise failed or choice
            async with contextlib.aclosing(self.dispatch.stream(choice, request, identity, context)) as replies:
                try:
                    reply = await anext(replies, None)
                except MeshError as error:
                    failed = self._again(error, failed, choice, context, tried, met)
                    continue
                while reply is not None:
                    yield reply
                    reply = await anext(replies, None)
                return

    def _again(
        self,
        error: MeshError,
        failed: MeshError | None,
        choice: Try,
        context: Context,
        tried: set[tuple[str, str]],
        met: Counter[str],
    ) -> MeshError:
        """Note that a try failed; what there is to raise if no other comes to anything. Raises it if none may be."""
        failed = error if failed is None or failed.refused or not error.refused else failed
        met[error.code] += 1
        enough = met[error.code] >= MAX_MET.get(error.code, 1 << 30)
        if (context.hops > 0 and choice.way.hop is None) or enough or not self._may_retry(error, context):
            raise failed from None
        self.retries[error.code] += 1
        log.debug("%s failed (%s), trying elsewhere", choice.way.key, error.code)
        node, path = choice.way.key
        tried.add((node, path))
        if not isinstance(error, (NodeUnreachable, BusUnavailable)):
            tried.update(_paths(node))
        return failed

    async def _hedged(
        self,
        first: Try,
        request: InferRequest,
        identity: ModelIdentity,
        context: Context,
        tried: set[tuple[str, str]],
        given_ms: float,
    ) -> Reply:
        """Send to a second place too if the first is late; the first answer counts. What was tried is noted."""
        tries = [asyncio.ensure_future(self.dispatch.send(first, request, identity, context))]
        try:
            await asyncio.wait(tries, timeout=_due_s(first))
            if not tries[0].done() and self._hedges.may(time.monotonic()):
                both = {*tried, first.way.key, *_paths(first.way.target.node)}
                second = self._choose(request, identity, context, both, given_ms)
                if isinstance(second, Try):
                    second.reason = "beside a late one"
                    tries.append(asyncio.ensure_future(self.dispatch.send(second, request, identity, context)))
                    tried.update((second.way.key, *_paths(second.way.target.node)))
            return await _first_answer(tries)
        finally:
            for each in tries:
                each.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    def _choose(
        self,
        request: InferRequest,
        identity: ModelIdentity,
        context: Context,
        tried: set[tuple[str, str]],
        given_ms: float,
    ) -> Try | MeshError:
        """Where to try next, or why nowhere."""
        ways, nbytes = self._ways, request.body().nbytes
        ask = Ask(identity, context.deadline.left_ms(), given_ms, nbytes, priority=request.priority)
        free = not tried and not request.parameters.keys() & PLACED
        if free and (at_once := self._at_once(ask, identity, context)) is not None:
            return at_once
        for _ in range(MAX_SURVEYS):
            without = [*ways.survey(identity, context, nbytes)]
            without += (kept_away := self._kept_away(request, identity, context, tried))
            decision = self._rule.choose(ask, ways.outlook, time.monotonic(), self._rng, without)
            if decision.slot is None:
                return self._nowhere(identity, context, nbytes, decision, kept_away)
            way = ways.way(decision.slot, identity)
            if way is not None:  # given back once, not for ever, and only to who tries again
                recall_ms = 0.0 if tried or context.hops > 0 else decision.recall_ms
                return Try(way, ask, decision.reason, decision.estimate, recall_ms)
        return NoReadyInstance(f"the ways to model {identity.name!r} change faster than it can be sent")

    def _at_once(self, ask: Ask, identity: ModelIdentity, context: Context) -> Try | None:
        """This node itself, if it is idle and so quick that no other could win by more than counts."""
        service_ms = self._ways.here(identity, context)
        if service_ms is None or LOCAL_MS + service_ms > min(self._rule.at_once_ms, ask.left_ms):
            return None
        way = self._ways.way(HERE, identity)
        return None if way is None else Try(way, ask, "idle and at once")

    def _kept_away(
        self, request: InferRequest, identity: ModelIdentity, context: Context, tried: set[tuple[str, str]]
    ) -> list[int]:
        """Slots that were tried, are ejected, lie outside the request's pin, or are not where its sequence is."""
        outlook, now = self._ways.outlook, time.monotonic()
        away = [HERE] if any(path == "local" for _, path in tried) else []
        if context.hops > 0 and tried:
            return [*away, *range(1, outlook.count)]
        for node, path in tried:
            slot = outlook.slots.get(node)
            if slot is not None and ((way := self._ways.way(slot, identity)) is None or way.key == (node, path)):
                away.append(slot)
        ejected = self.dispatch.ejection.ejected(now, outlook.count - 1)
        away += [outlook.slots[node] for node in ejected if node in outlook.slots]
        return away + self._outside(request, identity, context, now)

    def _outside(self, request: InferRequest, identity: ModelIdentity, context: Context, now: float) -> list[int]:
        outlook, parameters, stay = self._ways.outlook, request.parameters, self._view.stay(identity)
        if not (parameters or stay or context.keep or context.avoid):
            return []
        outside: list[int] = []
        here = self._ways.place(HERE)
        if here is not None and (pin := Pin.of(parameters, stay)) is not None:
            places = [self._ways.place(slot) for slot in range(outlook.count)]
            outside = [slot for slot, place in enumerate(places) if place is None or not pin.allows(here, place)]
        if context.keep:
            outside += [slot for slot in range(outlook.count) if outlook.names[slot] != context.keep]
        elif context.avoid:
            outside += [slot for slot in range(outlook.count) if outlook.names[slot] in context.avoid]
        if context.hops > 0 and sequence_steps.RUN in parameters:
            outside += range(1, outlook.count)  # the first door counts on it to stay where it sent it
        return outside

    def _may_retry(self, error: MeshError, context: Context) -> bool:
        return error.retryable and not context.deadline.expired and self._budget.may_retry(error, time.monotonic())

    def _nowhere(
        self, identity: ModelIdentity, context: Context, nbytes: int, decision: Decision, kept_away: list[int]
    ) -> MeshError:
        self.dispatch.reasons[decision.reason] += 1
        if decision.wait_ms > 0.0:
            after_s = decision.wait_ms / 1e3
            return Overloaded(f"{decision.reason}; try again in {after_s:.3g} s", retry_after_s=after_s)
        outlook = self._ways.outlook
        if kept_away and (outlook.penalty + outlook.of(identity)[0])[kept_away].min() < inf:
            return self._view.missing(identity, "it may not go to those that hold it")
        return self._view.missing(identity, self._ways.why_none(identity, context, nbytes))


def _paths(node: str) -> list[tuple[str, str]]:
    """Every way to another node."""
    return [(node, "http"), (node, "bus")]


def _due_s(first: Try) -> float | None:
    """How long after sending a second try is due, in seconds; None is never."""
    if first.predicted is None:
        return None
    due_ms = hedging.after_ms(first.predicted, first.ask.left_ms, first.recall_ms)
    return None if due_ms is None else due_ms / 1e3


async def _first_answer(tries: Sequence[asyncio.Future[Reply]]) -> Reply:
    """Of tries that go on; where all fail, the error of the first that leaves open whether the work ran."""
    pending: set[asyncio.Future[Reply]] = set(tries)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for each in done:
            if each.exception() is None:
                return each.result()
    errors = [error for each in tries if (error := each.exception()) is not None]
    raise next((error for error in errors if not (isinstance(error, MeshError) and error.refused)), errors[0])
