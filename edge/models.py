"""The models of this node as its router sees them (``mesh.router.LocalModels``): what is held, and running one.

Translation between OIP values and the runtime's raw tensors happens here and nowhere else. Not here: queueing
(``executor``), life (``instances``).
"""

from __future__ import annotations

from edge.instances import Instance, Instances
from hardware.backend import RawTensor, TensorInfo
from mesh.deadline import Deadline
from mesh.errors import DigestMismatch, ModelNotFound, ModelNotReady
from mesh.messages import ModelLoad
from mesh.oip.request import InferRequest
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity, ModelMetadata, ModelRef, TensorSpec


class Models:
    """Implements ``LocalModels`` on the instances of this node."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self.draining = False

    def identity(self, ref: ModelRef) -> ModelIdentity | None:
        found = self._instances.find(ref.name, ref.version)
        return None if found is None or found.state in ("FAILED", "QUARANTINED") else found.identity

    def load(self, identity: ModelIdentity) -> ModelLoad | None:
        found = self._instances.find(identity.name, identity.version)
        return None if found is None else found.report()

    def held(self, name: str) -> tuple[ModelLoad, ...]:
        return tuple(i.report() for i in self._instances.named(name))

    def reports(self) -> tuple[ModelLoad, ...]:
        return tuple(i.report() for i in self._instances.all())

    def coming(self) -> tuple[str, ...]:
        """Models that are still on their way to READY."""
        return tuple(i.served.key for i in self._instances.all() if i.coming())

    def wait_ms(self) -> float:
        return self._instances.executor.wait_ms()

    async def infer(self, request: InferRequest, identity: ModelIdentity, deadline: Deadline) -> WireBody:
        instance = self._instance(identity)
        inputs = [RawTensor(t.name, t.datatype, t.shape, t.data) for t in request.inputs]
        names = tuple(o.name for o in request.outputs)
        ran = await self._instances.executor.infer(instance.served, inputs, names, deadline, request.priority)
        outputs = tuple(Tensor(t.name, t.datatype, t.shape, t.data) for t in ran)
        return encode_response(InferResponse(identity.name, identity.version, request.id, {}, outputs), request)

    def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        instance = self._instance(identity)
        loaded = instance.loaded
        if loaded is None:
            reason = f": {instance.reason}" if instance.reason else ""
            raise ModelNotReady(f"model {identity.name!r} is {instance.state}, its metadata is not known{reason}")
        versions = tuple(i.identity.version for i in self._instances.named(identity.name))
        parameters = {"requested_backend": loaded.requested, "effective_backend": loaded.effective}
        signature = loaded.signature
        inputs, outputs = _specs(signature.inputs), _specs(signature.outputs)
        return ModelMetadata(identity.name, versions, loaded.platform, inputs, outputs, parameters)

    def _instance(self, identity: ModelIdentity) -> Instance:
        found = self._instances.find(identity.name, identity.version)
        if found is None:
            raise ModelNotFound(f"Request for unknown model: {identity.name!r} is not found")
        if found.identity.digest != identity.digest:
            raise DigestMismatch(f"this node holds other bytes as {identity.name}/{identity.version}")
        return found


def _specs(infos: tuple[TensorInfo, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(i.name, i.datatype, i.shape) for i in infos)
