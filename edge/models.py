"""The models of this node as its router sees them (``mesh.router.LocalModels``): what is held, and running one.

Translation between OIP values and the runtime's raw tensors happens here and nowhere else. Not here: queueing
(``executor``), life (``instances``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from edge.config_document import config_document, visible
from edge.instance import Instance
from edge.instances import Instances
from edge.sequences import Run, Sequences
from edge.statistics import statistics_of
from hardware.backend import Loaded, RawTensor, TensorInfo
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, DigestMismatch, ModelNotFound, ModelNotReady, Unsupported
from mesh.lifecycle import within
from mesh.messages import IDLE, ModelLoad, Work
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.statistics import ModelStatistics
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.sequence_steps import RUN
from mesh.settings import SequencesSettings
from mesh.values import LABELS, ModelIdentity, ModelMetadata, ModelRef, TensorSpec

EXPIRE_S = 1.0


class Models:
    """Implements ``LocalModels`` on the instances of this node. ``capacity`` is the share of its speed the node expects
    to have shortly: what is reported is what others will meet."""

    def __init__(
        self,
        instances: Instances,
        capacity: Callable[[], float] = lambda: 1.0,
        sequences: SequencesSettings | None = None,
    ) -> None:
        self._instances = instances
        self.sequences = Sequences(sequences or SequencesSettings())
        self._capacity = capacity
        self.draining = False

    def identity(self, ref: ModelRef) -> ModelIdentity | None:
        found = self._instances.find(ref.name, ref.version)
        return None if found is None or found.over else found.identity

    def load(self, identity: ModelIdentity) -> ModelLoad | None:
        """As this node's own router sees it: what is being unloaded answers to the last, and what was evicted can be
        had for the time that loading it again takes."""
        found = self._instances.at(identity) or self._instances.find(identity.name, identity.version)
        if found is None:
            return None
        load = self._report(found)
        if found.state == "DRAINING" and found.served.ready:
            return msgspec.structs.replace(load, state="READY")
        if found.evicted:
            return msgspec.structs.replace(load, state="READY", service_ms=load.service_ms + found.load_ms)
        return load

    def held(self, name: str) -> tuple[ModelLoad, ...]:
        return tuple(map(self._report, self._instances.named(name)))

    def reports(self) -> tuple[ModelLoad, ...]:
        return tuple(map(self._report, self._instances.all()))

    def coming(self) -> tuple[str, ...]:
        """Models that are still on their way to READY."""
        return tuple(i.name for i in self._instances.all() if i.coming())

    def work(self) -> Work:
        """All there is to do on this node now."""
        work, capacity = self._instances.executor.forecast.work(), self._capacity()
        return work if work is IDLE or capacity == 1.0 else _at(work, capacity)

    def wait_ms(self) -> float:
        return self._instances.executor.forecast.wait_ms() / self._capacity()

    async def infer(self, request: InferRequest, identity: ModelIdentity, deadline: Deadline) -> WireBody:
        instance = self._instance(identity)
        came, tally = time.monotonic(), instance.served.tally
        instance.asked_at = came
        try:
            body = await self._answer(instance, request, deadline)
        except Exception:
            tally.request(time.monotonic() - came, answered=False)
            raise
        tally.request(time.monotonic() - came, answered=True)
        return body

    async def stream(
        self, request: InferRequest, identity: ModelIdentity, deadline: Deadline
    ) -> AsyncGenerator[WireBody, None]:
        """The answers of a decoupled model as they come, one of any other; closing it ends the run."""
        instance = self._instance(identity)
        came, tally = time.monotonic(), instance.served.tally
        instance.asked_at = came
        try:
            if instance.evicted:
                await self._back(instance, deadline)
            if not _is_decoupled(instance):
                yield await self._answer(instance, request, deadline)
            else:
                streams = self._instances.executor.streams
                answers = streams.stream(instance.served, *_asked(request), deadline, request.priority)
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        yield _encoded(identity, answer, request)
        except Exception:
            tally.request(time.monotonic() - came, answered=False)
            raise
        tally.request(time.monotonic() - came, answered=True)

    async def _answer(self, instance: Instance, request: InferRequest, deadline: Deadline) -> WireBody:
        if instance.evicted:
            await self._back(instance, deadline)
        if _is_decoupled(instance):
            raise Unsupported(f"model {instance.name} answers any number of times: ask for a stream")
        if instance.stored.config.sequence is not None:
            return await self.sequences.infer(instance, request, deadline, self._runner(instance, request, deadline))
        if RUN in request.parameters:
            raise ModelNotReady(f"model {instance.name} is not declared to keep state on this node")
        inputs, names = _asked(request)
        ran = await self._instances.executor.infer(instance.served, inputs, names, deadline, request.priority)
        return _encoded(instance.identity, ran, request)

    async def expire(self) -> None:
        """Forget sequences of which nothing is heard, until cancelled."""
        while True:
            await asyncio.sleep(EXPIRE_S)
            self.sequences.forget_idle(time.monotonic())

    def _runner(self, instance: Instance, request: InferRequest, deadline: Deadline) -> Run:
        async def run(inputs: Sequence[RawTensor], names: Sequence[str]) -> list[RawTensor]:
            executor = self._instances.executor
            return await executor.infer(instance.served, inputs, names, deadline, request.priority)

        return run

    def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        instance = self._instance(identity)
        loaded = instance.loaded
        if loaded is None:
            raise _not_loaded(instance, "metadata")
        versions = tuple(dict.fromkeys(i.identity.version for i in self._instances.named(identity.name)))
        inputs, outputs = map(_specs, visible(instance, loaded))
        return ModelMetadata(identity.name, versions, loaded.platform, inputs, outputs, _parameters(instance, loaded))

    def config(self, identity: ModelIdentity) -> dict[str, Any]:
        instance = self._instance(identity)
        if instance.loaded is None:
            raise _not_loaded(instance, "configuration")
        return config_document(instance, instance.loaded)

    def statistics(self, ref: ModelRef | None) -> tuple[ModelStatistics, ...]:
        """Raises ``ModelNotFound``."""
        held = self._instances.all() if ref is None else self._instances.named(ref.name)
        if ref is not None and ref.version:
            held = [instance for instance in held if instance.identity.version == ref.version]
        if ref is not None and not held:
            raise ModelNotFound(f"Request for unknown model: {str(ref)!r} is not found")
        versions = {(i.identity.name, i.identity.version): i for i in held}
        return tuple(statistics_of(instance, self._instances.device) for instance in versions.values())

    async def _back(self, instance: Instance, deadline: Deadline) -> None:
        """Load again what was evicted, as long as its deadline allows to wait."""
        self._instances.retry(instance)
        try:
            await within(deadline.left_s(), self._instances.changed.until(lambda: not instance.coming()))
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"model {instance.name} is still being loaded again at the deadline") from None
        if instance.state != "READY":
            raise ModelNotReady(f"model {instance.name} could not be loaded again: {instance.reason}")

    def _report(self, instance: Instance) -> ModelLoad:
        service_ms, row_ms = self._instances.costs(instance)
        return instance.report(service_ms, row_ms, self._capacity())

    def _instance(self, identity: ModelIdentity) -> Instance:
        found = self._instances.at(identity)
        if found is not None:
            return found
        if self._instances.find(identity.name, identity.version) is None:
            raise ModelNotFound(f"Request for unknown model: {identity.name!r} is not found")
        raise DigestMismatch(f"this node holds other bytes as {identity.name}/{identity.version}")


def _asked(request: InferRequest) -> tuple[list[RawTensor], tuple[str, ...]]:
    inputs = [RawTensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs]
    return inputs, tuple(o.name for o in request.outputs)


def _encoded(identity: ModelIdentity, ran: Sequence[RawTensor], request: InferRequest) -> WireBody:
    outputs = tuple(Tensor(t.name, t.datatype, t.shape, t.whole) for t in ran)
    return encode_response(InferResponse(identity.name, identity.version, request.id, {}, outputs), request)


def _is_decoupled(instance: Instance) -> bool:
    return instance.loaded is not None and instance.loaded.decoupled


def _not_loaded(instance: Instance, what: str) -> ModelNotReady:
    reason = f": {instance.reason}" if instance.reason else ""
    return ModelNotReady(f"model {instance.identity.name!r} is {instance.state}, its {what} is not known{reason}")


def _at(work: Work, capacity: float) -> Work:
    """As it is with so large a share of the speed."""
    queued = tuple([(level, tuple([ms / capacity for ms in bins])) for level, bins in work.queued])
    return Work(work.wait_ms / capacity, queued)


def _parameters(instance: Instance, loaded: Loaded) -> dict[str, str]:
    """What an application may want to know of how the model runs (DESIGN D8)."""
    known = {
        "requested_backend": instance.chain[0],
        "effective_backend": loaded.effective,
        "instances": str(instance.served.instances),
        "max_batch_rows": str(instance.served.batching.max_rows),
        "reason": instance.reason,
        "detail": loaded.detail,
    }
    labels = {LABELS + name: "\n".join(each.names) for name, each in instance.stored.config.labels.items()}
    return {name: value for name, value in known.items() if value} | labels


def _specs(infos: tuple[TensorInfo, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(i.name, i.datatype, i.shape) for i in infos)
