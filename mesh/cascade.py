"""The confidence cascade: a small model answers, and where it is not sure a larger one is asked, wherever that runs.

Only the first door of a request does so, by what the small model's holder declares, through the router as any request.
The larger model's own cascade is not applied. An answer that is there is never lost: whatever goes wrong with the
larger model, the caller gets the small one's. What a door learns it keeps in memory, for itself. Not here: where either
runs (``router``), how sure an answer is (``confidence``), how sure is sure enough (``calibration``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from math import exp

import msgspec

from mesh import cascade_answers as answers
from mesh.calibration import Calibration
from mesh.cascade_answers import Judged
from mesh.confidence import KINDS
from mesh.deadline import Deadline
from mesh.declarations import Cascade
from mesh.errors import DeadlineExceeded, MeshError, NoReadyInstance
from mesh.hop import Context, Reply
from mesh.lifecycle import Tasks, within
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse
from mesh.values import ModelIdentity, ModelRef
from mesh.view import View

log = logging.getLogger(__name__)

Infer = Callable[[InferRequest, ModelIdentity, Context], Awaitable[Reply]]

MAX_AUDITS = 4
"""Audits under way at a time; what would be one more is dropped."""
AUDIT_MS = 10_000.0
MAX_MODELS = 256
"""Small models that are kept count of; of more the one seen first is forgotten."""
RESERVE, MIN_RESERVE_MS, MAX_RESERVE_MS = 0.05, 2.0, 100.0
"""Share of the time left, and its limits, that the larger model is not given: the small one's answer goes out in it."""
FADE_S = 30.0
"""Time constant with which a larger model that was slow is believed in again."""

LATE, INCOMPARABLE, INTERNAL = "late", "incomparable", "internal"


class _Pace:
    """How much longer than its holders say a larger model takes: the network, and whatever they do not know."""

    def __init__(self) -> None:
        self._beyond_ms = 0.0
        self._at = 0.0

    def beyond_ms(self, now: float) -> float:
        return self._beyond_ms * exp(-max(now - self._at, 0.0) / FADE_S)

    def learn(self, beyond_ms: float, now: float) -> None:
        """Slowness is believed at once, recovery gradually."""
        known = self.beyond_ms(now)
        self._beyond_ms = known + (max(beyond_ms, 0.0) - known) * (0.5 if beyond_ms > known else 0.1)
        self._at = now


class Policy:
    """One small model's cascade as this door runs it."""

    def __init__(self, identity: ModelIdentity, cascade: Cascade) -> None:
        self.answered: Counter[str] = Counter()
        """Answers by which model gave them: "small", "large", or "unread", the small one's that tells no confidence."""
        self.escalations: Counter[str] = Counter()
        """Answers that were not sure: "agreed", "differed" or "incomparable" where the larger model answered, else why
        not: "late" where the deadline would not have allowed it, or the code of the error."""
        self.audits: Counter[str] = Counter()
        """The same of audits; "dropped" where too many were under way, "failed" without an answer."""
        self.begin(identity, cascade)

    def begin(self, identity: ModelIdentity, cascade: Cascade) -> None:
        """Another declaration, or other bytes: what was learned is of no use any more, what was counted goes on."""
        self.identity = identity
        self.cascade = cascade
        self.calibration = Calibration(cascade.threshold, cascade.target, cascade.audit)
        self.larger: ModelIdentity | None = None
        self.pace = _Pace()
        self.warned = False

    def against(self, larger: ModelIdentity) -> None:
        """Comparisons are with that model from now on."""
        if larger != self.larger:
            if self.larger is not None:
                self.calibration.forget()
                self.pace = _Pace()
            self.larger = larger

    def compare(self, small: Judged, response: InferResponse, larger: ModelIdentity, *, sure: bool) -> str:
        """Learn from two answers to the same inputs."""
        agreed = answers.agree(small.response, response, self.cascade.output)
        if agreed is None:
            return INCOMPARABLE
        if larger == self.larger:
            self.calibration.compared(small.confidence, agreed=agreed, sure=sure)
        return "agreed" if agreed else "differed"


class Cascades:
    """Stands before the router of a door. ``infer`` is the router's."""

    def __init__(self, infer: Infer, view: View, rng: random.Random | None = None) -> None:
        self._infer = infer
        self._view = view
        self._rng = rng or random.Random()
        self._tasks = Tasks("cascade")
        self._auditing = 0
        self.policies: dict[tuple[str, str], Policy] = {}
        """By name and version of the small model, those that were asked for here."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Audits end with it."""
        async with self._tasks:
            yield

    async def infer(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        """As the router's, which it is for models without a cascade and for requests from other nodes.

        The small model is given the whole deadline, the larger one what is left less a reserve. Raises what the small
        one's request raises.
        """
        cascade = self._declared(identity) if context.hops == 0 else None
        if cascade is None or not answers.is_wanted(request):
            return await self._infer(request, identity, context)
        policy = self._policy(identity, cascade)
        asked = answers.kept(answers.with_output(request, cascade.output), self._view.stay(identity))
        reply = await self._infer(asked, identity, context)
        reply.cascade = "small"
        response = answers.read(reply.body)
        try:
            small = answers.judged(response, cascade)
        except MeshError as error:
            return self._unread(policy, error, _answer(reply, response, identity, request, asked))
        reply.confidence = small.confidence
        sure = policy.calibration.sure(small.confidence)
        policy.calibration.answered(sure=sure)
        if not sure and (larger := await self._escalate(policy, asked, small, context, request)) is not None:
            policy.answered["large"] += 1
            larger.cascade, larger.confidence = "large", small.confidence
            return larger
        answer = _answer(reply, response, identity, request, asked)
        policy.answered["small"] += 1
        if sure and self._rng.random() < cascade.audit:
            self._begin_audit(policy, asked, small, context)
        return answer

    def _declared(self, identity: ModelIdentity) -> Cascade | None:
        """By this node if it holds the model, else by the first that does; one that is not understood is none."""
        local = self._view.local
        load = local.load(identity) if local is not None else None
        if load is None or load.digest != identity.digest:
            load = next((m for _, m in self._view.elsewhere(identity.name) if m.identity == identity), None)
        cascade = load.cascade if load is not None else None
        if cascade is None or cascade.confidence not in KINDS or cascade.next == identity.name:
            return None
        return cascade

    def _policy(self, identity: ModelIdentity, cascade: Cascade) -> Policy:
        key = identity.name, identity.version
        policy = self.policies.get(key)
        if policy is None:
            while len(self.policies) >= MAX_MODELS:
                del self.policies[next(iter(self.policies))]
            policy = self.policies[key] = Policy(identity, cascade)
        elif policy.identity != identity or policy.cascade != cascade:
            policy.begin(identity, cascade)
        return policy

    def _unread(self, policy: Policy, error: MeshError, reply: Reply) -> Reply:
        policy.answered["unread"] += 1
        if not policy.warned:
            policy.warned = True
            log.warning("the cascade of model %s is not applied: %s", policy.identity.name, error.text)
        return reply

    async def _escalate(
        self, policy: Policy, asked: InferRequest, small: Judged, context: Context, request: InferRequest
    ) -> Reply | None:
        """The larger model's answer; None, and counted why, where the small one's stands."""
        try:
            reply, outcome = await self._larger(policy, asked, small, context, request)
        except MeshError as error:
            reply, outcome = None, error.code
        except asyncio.TimeoutError:
            reply, outcome = None, DeadlineExceeded.code
        except Exception:  # the caller must get the answer that is there
            log.exception("unexpected error of the larger model of %s", policy.identity.name)
            reply, outcome = None, INTERNAL
        policy.escalations[outcome] += 1
        return reply

    async def _larger(
        self, policy: Policy, asked: InferRequest, small: Judged, context: Context, request: InferRequest
    ) -> tuple[Reply | None, str]:
        larger = self._next(policy)
        left_ms = context.deadline.left_ms()
        reserve_ms = min(max(RESERVE * left_ms, MIN_RESERVE_MS), MAX_RESERVE_MS)
        deadline = Deadline(context.deadline.at - reserve_ms / 1e3)
        started = time.monotonic()
        said_ms = self._said_ms(larger)
        if said_ms + policy.pace.beyond_ms(started) > left_ms - reserve_ms:
            return None, LATE
        try:
            reply = await within(deadline.left_s(), self._ask(asked, larger, context, deadline))
        except (DeadlineExceeded, asyncio.TimeoutError):
            policy.pace.learn((time.monotonic() - started) * 1e3 - said_ms, time.monotonic())
            raise
        policy.pace.learn((time.monotonic() - started) * 1e3 - said_ms, time.monotonic())
        response = answers.fitting(answers.read(reply.body), small.response)
        reply.body = answers.as_asked(response, policy.identity, request)
        return reply, policy.compare(small, response, larger, sure=False)

    async def _ask(self, asked: InferRequest, larger: ModelIdentity, context: Context, deadline: Deadline) -> Reply:
        return await self._infer(answers.to(larger, asked), larger, msgspec.structs.replace(context, deadline=deadline))

    def _next(self, policy: Policy) -> ModelIdentity:
        """Raises ``ModelNotFound``."""
        larger = self._view.resolve(ModelRef(policy.cascade.next, policy.cascade.next_version))
        policy.against(larger)
        return larger

    def _said_ms(self, model: ModelIdentity) -> float:
        """Wait and service time at the holder that is quickest by its own word. Raises ``NoReadyInstance``."""
        said = []
        for view in self._view.watcher.membership.holders(model.name):
            load = view.model(model)
            if load is not None and load.state == "READY":
                said.append(view.report.wait_ms + load.service_ms)
        local = self._view.local
        load = local.load(model) if local is not None else None
        if local is not None and load is not None and load.identity == model and load.state == "READY":
            said.append(local.work().wait_ms + load.service_ms)
        if not said:
            raise NoReadyInstance(f"no node can run model {model.name!r} now")
        return min(said)

    def _begin_audit(self, policy: Policy, asked: InferRequest, small: Judged, context: Context) -> None:
        """It begins when this door's loop turns next: the answer is out by then."""
        if self._auditing >= MAX_AUDITS:
            policy.audits["dropped"] += 1
            return
        self._auditing += 1
        self._tasks.start(self._audit(policy, asked, small, context), "audit")

    async def _audit(self, policy: Policy, asked: InferRequest, small: Judged, context: Context) -> None:
        outcome = "failed"
        try:
            larger = self._next(policy)
            deadline = Deadline.after_ms(AUDIT_MS)
            reply = await within(deadline.left_s(), self._ask(answers.in_last_class(asked), larger, context, deadline))
            outcome = policy.compare(small, answers.read(reply.body), larger, sure=True)
        except (MeshError, asyncio.TimeoutError) as error:
            log.debug("an audit of %s failed: %s", policy.identity.name, error)
        finally:
            self._auditing -= 1
            policy.audits[outcome] += 1


def _answer(
    reply: Reply, response: InferResponse, identity: ModelIdentity, request: InferRequest, asked: InferRequest
) -> Reply:
    """The small model's, as it came where it was asked as the caller did."""
    if asked is not request:
        reply.body = answers.as_asked(response, identity, request)
    return reply
