"""The one seam behind every door, whatever its protocol: health, metadata, infer. It knows no HTTP and no bus.

A door translates its protocol to these calls and their errors back by the table in ``mesh.errors``; everything that a
request means is decided from here on. Not here: protocol framing (``http_door``, ``bus_door``), routing (``router``).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mesh import hop
from mesh.arrival import arrival
from mesh.cascade import Cascades
from mesh.deadline import Deadline
from mesh.errors import Draining, Internal, MeshError, ModelNotFound
from mesh.fleet_repository import FleetRepository
from mesh.heartbeat import Reporter
from mesh.hop import Context, Reply
from mesh.inquiry import Inquiry
from mesh.known import Known
from mesh.lifecycle import Counted
from mesh.messages import Load, Report
from mesh.metrics import Measured
from mesh.oip.request import InferRequest, decode_request
from mesh.oip.statistics import ModelStatistics
from mesh.oip.wire import Limits, read_length
from mesh.repositories import CLOSED, Opened, Repositories
from mesh.repository import ModelRepository
from mesh.router import Router
from mesh.sequence_doors import SequenceDoors
from mesh.sequence_steps import ID, Step
from mesh.sequencer import Sequencer
from mesh.settings import SequencesSettings
from mesh.shared_memory import SharedMemory
from mesh.shared_tensors import check_stream, fetch
from mesh.tally import Caller, Requests
from mesh.trust import Trust
from mesh.values import ModelIdentity, ModelMetadata, ModelRef, Route
from mesh.view import View

log = logging.getLogger(__name__)

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "parameters", "schedule_policy", "sequence",
    "sequence(string_id)", "statistics",
)  # fmt: skip
METADATA_DEADLINE_MS = 2_000.0


@dataclass(frozen=True, slots=True)
class Identity:
    """How this process names itself at its doors."""

    node: str
    server_name: str
    version: str


class Dataplane:
    """What a door offers. ``still_coming`` names the models that are on their way."""

    def __init__(
        self,
        *,
        identity: Identity,
        router: Router,
        view: View,
        trust: Trust,
        reporter: Reporter,
        still_coming: Callable[[], tuple[str, ...]],
        deadline_ms: float,
        limits: Limits,
        sequences: SequencesSettings | None = None,
        inquiry: Inquiry,
        shared_memory: bool = False,
        repository: ModelRepository | None = None,
        opened: Opened = CLOSED,
        metrics: Callable[[], Iterable[Measured]] = tuple,
    ) -> None:
        self.identity = identity
        self.view = view
        self.trust = trust
        self._reporter = reporter
        self.limits = limits
        self.metrics = metrics
        """Everything that is measured on this node, as of now."""
        self.requests = Requests(view.held)
        self._inquiry = inquiry
        self.repositories = Repositories(repository, FleetRepository(view, inquiry), view, opened)
        self.shared_memory = SharedMemory(enabled=shared_memory)
        self._router = router
        self.cascades = Cascades(router.infer, view)
        self.sequencer = Sequencer(router.infer, sequences, idle_s=self._sequence_idle_s)
        self.steps: Sequencer | SequenceDoors = self.sequencer  # on a bus another door may take them
        self.known = Known(inquiry, view, self.requests.refusing)
        self._still_coming = still_coming
        self._deadline_ms = deadline_ms
        self.serving = True
        """False once the door drains."""
        self._open = Counted()

    def report(self) -> Report:
        """This node's own report as of now."""
        return self._reporter.report()

    def ready(self) -> bool:
        """The door serves, and no model it was told to load is still on its way."""
        return self.serving and not self._still_coming()

    def models(self) -> list[str]:
        """Names of the models that are held anywhere this node can see."""
        views = self.view.watcher.membership.nodes()
        seen = {m.name for v in views if v.state in ("ready", "suspect") for m in v.report.models}
        return sorted(seen | {m.name for m in self.report().models})

    async def metadata(self, ref: ModelRef, hops: int = 0) -> ModelMetadata:
        context = Context(Deadline.after_ms(METADATA_DEADLINE_MS), hops)
        return await self._inquiry.metadata(self.view.resolve(ref), context)

    async def config(self, ref: ModelRef, hops: int = 0) -> dict[str, Any]:
        """Triton's model configuration, by the names of its JSON."""
        context = Context(Deadline.after_ms(METADATA_DEADLINE_MS), hops)
        return await self._inquiry.config(self.view.resolve(ref), context)

    async def statistics(self, ref: ModelRef | None, hops: int = 0) -> list[ModelStatistics]:
        """Of a model's versions, None being all models (:meth:`mesh.inquiry.Inquiry.statistics`)."""
        return await self._inquiry.statistics(ref, hops)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of OIP, as the server metadata lists them."""
        given = {"model_repository": self.repositories.opened.doors, "system_shared_memory": self.shared_memory.enabled}
        return (*EXTENSIONS, *(name for name, is_given in given.items() if is_given))

    def repository(self, *, change: bool) -> ModelRepository:
        """For applications (:class:`mesh.repositories.Repositories`)."""
        return self.repositories.at_door(change=change)

    def model_ready(self, ref: ModelRef) -> bool:
        return self.view.ready(ref)

    def decode(
        self, ref: ModelRef, body: bytes | bytearray | memoryview, header_length: str | bytes | None
    ) -> InferRequest:
        """Body and ``Inference-Header-Content-Length`` to a request; raises ``InvalidRequest``."""
        with self.requests.refusing():
            return decode_request(ref.name, ref.version, body, read_length(header_length), self.limits)

    async def infer(
        self, request: InferRequest, arrived: float, hop_headers: Mapping[str, str] | None, *, want_load: bool
    ) -> Reply:
        """Route and run a request that arrived at monotonic second ``arrived``.

        ``hop_headers`` are those of a proven caller, None for an application (DESIGN D4). With ``want_load`` the reply,
        or the error, says how busy the node that answers is.
        """
        caller: Caller = "application" if hop_headers is None else "node"
        identity: ModelIdentity | None = None
        try:
            digest = hop_headers.get(hop.DIGEST, "") if hop_headers is not None else ""
            identity = self.view.resolve(ModelRef(request.model, request.version), digest)
            context = self._context(request, identity, arrived, hop_headers)
            with self._counted(context):
                request, shared = await fetch(request, self.shared_memory, self.limits, hop_headers)
                reply = await self._route(request, identity, context)
                if shared is not None:
                    reply.body = await shared.deliver(reply.body)
        except BaseException as error:
            self._failed(error, identity, caller, want_load=want_load)
            raise
        seconds = time.monotonic() - arrived
        self.requests.answer(identity, reply.route, caller, seconds)
        return self._telling(reply, identity, seconds) if want_load else reply

    async def stream(
        self, request: InferRequest, arrived: float, hop_headers: Mapping[str, str] | None, *, want_load: bool
    ) -> AsyncGenerator[Reply, None]:
        """The answers to a request as they come: any number of a decoupled model, one of any other.

        Arguments are those of :meth:`infer`. Closing it ends the run, wherever that is.
        """
        if not self.decoupled(request):
            yield await self.infer(request, arrived, hop_headers, want_load=want_load)
            return
        caller: Caller = "application" if hop_headers is None else "node"
        identity, reply = None, None
        try:
            digest = hop_headers.get(hop.DIGEST, "") if hop_headers is not None else ""
            identity = self.view.resolve(ModelRef(request.model, request.version), digest)
            context = self._context(request, identity, arrived, hop_headers, streams=True)
            check_stream(request)
            with self._counted(context):
                request, _ = await fetch(request, self.shared_memory, self.limits, hop_headers)
                async with (
                    self.known.classes(request, identity, context.deadline) as (values, named),
                    contextlib.aclosing(self._router.stream(values, identity, context)) as replies,
                ):
                    async for each in replies:
                        each.body = await named(each.body)
                        if want_load and reply is None:
                            self._telling(each, identity, time.monotonic() - arrived)
                        reply = each
                        yield reply
        except BaseException as error:
            self._failed(error, identity, caller, want_load=want_load)
            raise
        route: Route = reply.route if reply is not None else "local"
        self.requests.answer(identity, route, caller, time.monotonic() - arrived)

    def decoupled(self, request: InferRequest) -> bool:
        """Whether the model answers a request any number of times; one that nobody knows does not."""
        with contextlib.suppress(ModelNotFound):
            facts = self.view.facts(self.view.resolve(ModelRef(request.model, request.version)))
            return facts is not None and facts.decoupled
        return False

    def _telling(self, reply: Reply, identity: ModelIdentity, seconds: float) -> Reply:
        """With what a neighbour learns from."""
        reply.time_ms = seconds * 1e3
        if reply.route == "local":
            reply.load = self.load(identity)
        return reply

    def _failed(self, error: BaseException, identity: ModelIdentity | None, caller: Caller, *, want_load: bool) -> None:
        self.requests.failure(identity, caller, error)
        if isinstance(error, MeshError):  # not the load of a node that it was passed on to
            error.load = self.load(identity) if want_load else None

    def load(self, identity: ModelIdentity | None) -> Load | None:
        """How busy this node is, seen from a model, None being one that nobody knows; None where it runs no models."""
        if (local := self.view.local) is None:
            return None
        return self._reporter.load(None if identity is None else local.load(identity))

    async def _route(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        if context.hops or not request.outputs:
            return await self._go(request, identity, context)
        async with self.known.classes(request, identity, context.deadline) as (values, named):
            reply = await self._go(values, identity, context)
            reply.body = await named(reply.body)
            return reply

    async def _go(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        if ID in request.parameters and context.hops == 0 and (step := self._step(request, identity)) is not None:
            return await self.steps.infer(request, identity, context, step)
        return await self.cascades.infer(request, identity, context)

    def _sequence_idle_s(self, identity: ModelIdentity) -> float:
        return facts.idle_s if (facts := self.view.facts(identity)) is not None else 0.0

    def _step(self, request: InferRequest, identity: ModelIdentity) -> Step | None:
        """None where the model keeps nothing between requests. Raises ``InvalidRequest``."""
        step, facts = Step.of(request.parameters), self.view.facts(identity)
        return step if facts is not None and facts.stateful else None

    def _counted(self, context: Context) -> AbstractContextManager[None]:
        """In flight at this door, which a drain waits for. Raises ``DeadlineExceeded`` or ``Draining``."""
        context.deadline.check()
        if not self.serving and context.hops > 0:
            raise Draining(f"node {self.identity.node} is draining")
        return self._open.one()

    @property
    def in_flight(self) -> int:
        """Requests that are not answered, streams that have not ended."""
        return self._open.count

    def _context(
        self,
        request: InferRequest,
        identity: ModelIdentity,
        arrived: float,
        headers: Mapping[str, str] | None,
        *,
        streams: bool = False,
    ) -> Context:
        return arrival(
            request, identity, arrived, headers, view=self.view, default_ms=self._deadline_ms, streams=streams
        )

    async def idle(self, timeout_s: float) -> int:
        """Wait until no request is in flight; how many still are after ``timeout_s`` seconds."""
        return await self._open.idle(timeout_s)


def unexpected(what: str) -> Internal:
    """Log the exception being handled under an id, and tell the caller only that id."""
    log_id = secrets.token_hex(4)
    log.exception("unexpected error %s while answering for %s", log_id, what)
    return Internal(f"internal error, see the log of this node under {log_id}")
