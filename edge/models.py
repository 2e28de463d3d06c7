"""The models of this node as its router sees them (``mesh.router.LocalModels``): what is held, and running one.

Translation between OIP values and the runtime's raw tensors happens here and nowhere else. Not here: queueing
(``executor``), life (``instances``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from edge.instance import Instance
from edge.instances import Instances
from hardware.backend import Loaded, RawTensor, TensorInfo
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, DigestMismatch, ModelNotFound, ModelNotReady
from mesh.lifecycle import within
from mesh.messages import IDLE, ModelLoad, Work
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity, ModelMetadata, ModelRef, TensorSpec


class Models:
    """Implements ``LocalModels`` on the instances of this node. ``capacity`` is the share of its speed the node expects
    to have shortly: what is reported is what others will meet."""

    def __init__(self, instances: Instances, capacity: Callable[[], float] = lambda: 1.0) -> None:
        self._instances = instances
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
        instance.asked_at = time.monotonic()
        if instance.evicted:
            await self._back(instance, deadline)
        inputs = [RawTensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs]
        names = tuple(o.name for o in request.outputs)
        ran = await self._instances.executor.infer(instance.served, inputs, names, deadline, request.priority)
        outputs = tuple(Tensor(t.name, t.datatype, t.shape, t.whole) for t in ran)
        return encode_response(InferResponse(identity.name, identity.version, request.id, {}, outputs), request)

    def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        instance = self._instance(identity)
        loaded = instance.loaded
        if loaded is None:
            reason = f": {instance.reason}" if instance.reason else ""
            raise ModelNotReady(f"model {identity.name!r} is {instance.state}, its metadata is not known{reason}")
        versions = tuple(dict.fromkeys(i.identity.version for i in self._instances.named(identity.name)))
        signature = loaded.signature
        inputs, outputs = _specs(signature.inputs), _specs(signature.outputs)
        return ModelMetadata(identity.name, versions, loaded.platform, inputs, outputs, _parameters(instance, loaded))

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
    return {name: value for name, value in known.items() if value}


def _specs(infos: tuple[TensorInfo, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(i.name, i.datatype, i.shape) for i in infos)
