"""Hand-written stand-ins at the seams of the product, for tests that must control what a real part only does by luck.

A runtime whose runs end when a test says so, models and transports that answer as told. Not here: buses (``nats``),
built values (``builders``), models on disk (``onnx_models``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hardware.backend import Loaded, LoadOptions, RawTensor, Signature
from hardware.errors import HardwareError, WorkerDied
from hardware.parts import Parts
from mesh.deadline import Deadline
from mesh.errors import MeshError, ModelNotFound
from mesh.hop import Context, Question, Reply, Target
from mesh.messages import ModelLoad, Work
from mesh.neighbours import Answer
from mesh.oip.documents import encode_model_metadata
from mesh.oip.request import InferRequest
from mesh.oip.statistics import ModelStatistics
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from tests.builders import an_identity
from tests.nats import soon

Run = asyncio.Future[list[RawTensor]]
BODY = WireBody((b'{"model_name":"resnet","outputs":[]}',), None)


def a_request(model: str = "resnet", *, nbytes: int = 16, timeout_us: int | None = None) -> InferRequest:
    parameters = {} if timeout_us is None else {"timeout": timeout_us}
    tensor = Tensor("X", "UINT8", (nbytes,), bytes(nbytes))
    return InferRequest(
        model=model, version="", id="", parameters=parameters, inputs=(tensor,), outputs=(), binary_default=True,
        wire=None,
    )  # fmt: skip


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing tells of, with the patience of a test."""

    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.002)

    await soon(wait())


class ScriptedRuntime:
    """A :class:`hardware.runtime.Runtime` whose runs the test ends: ``runs`` holds (key, future), oldest first."""

    def __init__(self) -> None:
        self.on_death: Callable[[str], None] | None = None
        self.runs: list[tuple[str, Run]] = []
        self.inputs: list[Sequence[RawTensor]] = []
        """Of each of ``runs``."""
        self.abandoned: list[Run] = []
        self.at_once: list[RawTensor] | HardwareError | None = None
        """Set it and runs are done before ``run`` returns."""
        self.alive = True
        self.pid = 0

    async def load(self, key: str, path: str, options: LoadOptions) -> Loaded:
        return Loaded(Signature((), ()), options.backend, options.backend, "scripted", 0.0)

    async def unload(self, key: str) -> None: ...

    async def close(self) -> None:
        self.alive = False

    def run(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Run:
        future: Run = asyncio.get_running_loop().create_future()
        if isinstance(self.at_once, HardwareError):
            future.set_exception(self.at_once)
        elif self.at_once is not None:
            future.set_result(self.at_once)
        else:
            self.runs.append((key, future))
            self.inputs.append(inputs)
        return future

    def stream(self, key: str, inputs: Sequence[RawTensor], outputs: Sequence[str]) -> Parts:
        """The test gives its ``Parts`` answers, and ends the run as any other."""
        return Parts(self.run(key, inputs, outputs))

    def abandon(self, run: Run) -> None:
        self.abandoned.append(run)

    @property
    def keys(self) -> list[str]:
        """Keys of the runs that were ever handed over, in order."""
        return [key for key, _ in self.runs]

    def end(self, number: int = 0, outcome: list[RawTensor] | Exception = []) -> None:  # noqa: B006 - never changed
        """End the run of that number."""
        future = self.runs[number][1]
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(list(outcome))

    def die(self, reason: str = "it crashed") -> None:
        """As ``WorkerRuntime`` does: dead first, then every run fails."""
        self.alive = False
        for _, future in self.runs:
            if not future.done():
                future.set_exception(WorkerDied(reason))
        if self.on_death is not None:
            self.on_death(reason)


class ScriptedModels:
    """:class:`mesh.view.LocalModels` that hold what ``loads`` says and answer with ``outcome``."""

    def __init__(self, *loads: ModelLoad) -> None:
        self.loads = list(loads)
        self.outcome: MeshError | None = None
        self.hold: asyncio.Event | None = None
        """Answers come once it is set."""
        self.waiting_ms = 0.0
        self.draining = False
        self.served: list[Deadline] = []

    def identity(self, ref: ModelRef) -> ModelIdentity | None:
        held = [m for m in self.held(ref.name) if ref.version in ("", m.version)]
        return next((m.identity for m in reversed(held) if m.state not in ("FAILED", "QUARANTINED")), None)

    def load(self, identity: ModelIdentity) -> ModelLoad | None:
        return next((m for m in self.held(identity.name) if m.version == identity.version), None)

    def held(self, name: str) -> tuple[ModelLoad, ...]:
        return tuple(m for m in self.loads if m.name == name)

    def work(self) -> Work:
        return Work(self.waiting_ms)

    def wait_ms(self) -> float:
        return self.waiting_ms

    async def infer(self, request: InferRequest, identity: ModelIdentity, deadline: Deadline) -> WireBody:
        self.served.append(deadline)
        if self.hold is not None:
            await self.hold.wait()
        if self.outcome is not None:
            raise self.outcome
        return BODY

    async def stream(
        self, request: InferRequest, identity: ModelIdentity, deadline: Deadline
    ) -> AsyncGenerator[WireBody, None]:
        """One answer."""
        yield await self.infer(request, identity, deadline)

    def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        return some_metadata(identity)

    def config(self, identity: ModelIdentity) -> dict[str, Any]:
        return {"name": identity.name}

    def statistics(self, ref: ModelRef | None) -> tuple[ModelStatistics, ...]:
        """One inference of each version held."""
        meant = [m for m in self.loads if ref is None or (m.name == ref.name and ref.version in ("", m.version))]
        if ref is not None and not meant:
            raise ModelNotFound(f"Request for unknown model: {ref}")
        return tuple(ModelStatistics(m.name, m.version, inference_count=1) for m in meant)


@dataclass
class ScriptedHop:
    """:class:`mesh.hop.Hop` that answers as ``outcomes`` says by node; without an entry it succeeds."""

    outcomes: dict[str, MeshError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    hold: dict[str, asyncio.Event] = field(default_factory=dict)
    """A node with an entry answers once its event is set."""
    answers: dict[tuple[str, Question], bytes] = field(default_factory=dict)
    """By node and question; metadata need none."""
    refusals: dict[tuple[str, Question], MeshError] = field(default_factory=dict)
    bodies: dict[tuple[str, Question], bytes] = field(default_factory=dict)
    """What questions were sent with, the last time."""
    called_off: list[str] = field(default_factory=list)
    """Nodes whose request was cancelled meanwhile."""
    left: int = 0
    """Requests that are not answered yet."""
    holds: dict[tuple[str, Question], asyncio.Event] = field(default_factory=dict)
    """As ``hold``, for what a node is asked."""
    streams: dict[str, list[Reply]] = field(default_factory=dict)
    """The answers of a node to one that is asked by stream."""
    reply: Callable[[Target], Reply] = lambda target: Reply(BODY, target.node, target.route, 1)

    async def infer(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> Reply:
        self.asked.append(target.node)
        self.contexts.append(context)
        if (event := self.hold.get(target.node)) is not None:
            await self._wait(target.node, event)
        if (error := self.outcomes.get(target.node)) is not None:
            raise error
        return self.reply(target)

    async def stream(
        self, target: Target, request: InferRequest, identity: ModelIdentity, context: Context, up_ms: float
    ) -> AsyncGenerator[Reply, None]:
        """What ``streams`` says, then as :meth:`infer` but for its answer."""
        for reply in self.streams.get(target.node, ()):
            yield reply
        self.asked.append(target.node)
        self.contexts.append(context)
        if (event := self.hold.get(target.node)) is not None:
            await self._wait(target.node, event)
        if (error := self.outcomes.get(target.node)) is not None:
            raise error

    async def _wait(self, node: str, event: asyncio.Event) -> None:
        self.left += 1
        try:
            await event.wait()
        except asyncio.CancelledError:
            self.called_off.append(node)
            raise
        finally:
            self.left -= 1

    async def ask(self, target: Target, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        self.asked.append(target.node)
        if (error := self.outcomes.get(target.node)) is not None:
            raise error
        self.bodies[target.node, what] = body
        if (event := self.holds.get((target.node, what))) is not None:
            await self._wait(target.node, event)
        if (error := self.refusals.get((target.node, what))) is not None:
            raise error
        if (answer := self.answers.get((target.node, what))) is not None:
            return answer
        return encode_model_metadata(some_metadata(ModelIdentity(ref.name, ref.version, "")))


class ScriptedProber:
    """:class:`mesh.neighbours.Prober` for which each address has an answer, made from the challenge, or an error."""

    def __init__(self) -> None:
        self.doors: dict[str, Callable[[str], Answer] | MeshError] = {}
        self.probed: list[str] = []
        self._more = asyncio.Event()

    async def probe(self, address: str, challenge: str, timeout_s: float) -> Answer:
        self.probed.append(address)
        self._more.set()
        answer = self.doors[address]
        if isinstance(answer, MeshError):
            raise answer
        return answer(challenge)

    async def next_probe(self) -> None:
        """Return once something is probed after this call."""
        self._more.clear()
        await asyncio.wait_for(self._more.wait(), 60)


def some_metadata(identity: ModelIdentity | None = None) -> ModelMetadata:
    identity = identity or an_identity()
    return ModelMetadata(identity.name, (identity.version,), "scripted", (), ())
