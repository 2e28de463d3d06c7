"""The tensors that a node adds to a step: the state before the first one, controls, and what of a model callers see.

Not here: which state a step takes (``sequences``), what is declared (``sequence_config``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from edge.instance import Instance
from edge.sequence_config import FREE, SequenceConfig
from hardware.backend import RawTensor, TensorInfo
from mesh.errors import InvalidRequest, ModelNotReady
from mesh.oip.datatypes import DATATYPES
from mesh.oip.request import InferRequest
from mesh.oip.tensor import Tensor, pack_elements
from mesh.oip.wire import quoted
from mesh.sequence_steps import ID, Step, plain, state


def given(instance: Instance, config: SequenceConfig, request: InferRequest) -> list[RawTensor]:
    """What the caller brings. Raises ``InvalidRequest`` for what is not the caller's to bring."""
    brought = plain(request.inputs)
    if not brought:
        raise InvalidRequest("the request has no inputs")
    if hidden := {t.name for t in brought} & set(config.inputs):
        raise InvalidRequest(f"input {quoted(min(hidden))} of model {instance.identity.name!r} is filled by its node")
    return [RawTensor(t.name, t.datatype, t.shape, t.data) for t in brought]


def visible(instance: Instance, config: SequenceConfig, request: InferRequest) -> tuple[str, ...]:
    """Outputs to answer. Raises ``InvalidRequest`` for one that carries state."""
    asked = tuple([output.name for output in request.outputs])
    if hidden := set(asked) & set(config.outputs):
        raise InvalidRequest(f"output {quoted(min(hidden))} of model {instance.identity.name!r} is state, kept here")
    if instance.loaded is None:
        raise ModelNotReady(f"model {instance.name} is not loaded at the moment")
    return asked or tuple([o.name for o in instance.loaded.signature.outputs if o.name not in config.outputs])


def restored(instance: Instance, config: SequenceConfig, request: InferRequest) -> tuple[RawTensor, ...]:
    """The state that a request brings, as good as any input. Raises ``InvalidRequest``."""
    found, infos = {t.name: t for t in state(request.inputs)}, infos_of(instance)
    if set(found) != {s.input for s in config.state}:
        raise InvalidRequest(f"the request restores {sorted(found)}, the state is {[s.input for s in config.state]}")
    for name, tensor in found.items():
        if tensor.datatype != infos[name].datatype:
            raise InvalidRequest(f"state {quoted(name)} is {infos[name].datatype}, the request restores it from other")
    return tuple([RawTensor(s.input, found[s.input].datatype, found[s.input].shape, found[s.input].data)
                  for s in config.state])  # fmt: skip


def initial(instance: Instance, config: SequenceConfig, rows: int) -> tuple[RawTensor, ...]:
    """The state before the first step."""
    infos = infos_of(instance)
    return tuple([filled(infos[s.input], of_rows(s.starts_as(infos[s.input]), rows), s.initial) for s in config.state])


def check_rows(instance: Instance, config: SequenceConfig, before: Sequence[RawTensor], rows: int) -> None:
    """Raises ``InvalidRequest`` where a batch of the request is not the batch whose state is kept."""
    infos = infos_of(instance)
    for declared, tensor in zip(config.state, before, strict=True):
        shape = declared.starts_as(infos[declared.input])
        brought = tensor.shape[0] if tensor.shape else 0
        if shape and shape[0] == FREE and brought != rows:
            raise InvalidRequest(f"the sequence has {brought} rows, the request has {rows}")


def controls(instance: Instance, config: SequenceConfig, step: Step, rows: int, *, first: bool) -> list[RawTensor]:
    """Raises ``InvalidRequest`` where the model takes ids of another kind."""
    infos, named = infos_of(instance), config.controls
    made = [
        filled(infos[name], control_shape(infos[name], rows), float(value))
        for name, value in ((named.start, first), (named.end, step.end), (named.ready, True))
        if name
    ]
    return [*made, _id(infos[named.id], step.id, rows)] if named.id else made


def _id(info: TensorInfo, value: int | str, rows: int) -> RawTensor:
    shape = control_shape(info, rows)
    if info.datatype == "BYTES":
        return RawTensor(info.name, "BYTES", shape, pack_elements([str(value)] * prod(shape), f"parameter {ID!r}"))
    dtype = DATATYPES[info.datatype].dtype
    if not isinstance(value, int):
        raise InvalidRequest(f"{ID!r} is the text {quoted(value)}, the model takes {info.datatype}")
    if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
        raise InvalidRequest(f"{ID!r} {quoted(value)} is out of the range of {info.datatype}, which the model takes")
    return RawTensor(info.name, info.datatype, shape, np.full(shape, value, dtype).tobytes())


def filled(info: TensorInfo, shape: tuple[int, ...], value: float) -> RawTensor:
    return RawTensor(info.name, info.datatype, shape, Tensor.from_value(info.name, info.datatype, shape, value).data)


def of_rows(shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return (rows, *shape[1:]) if shape and shape[0] == FREE else shape


def control_shape(info: TensorInfo, rows: int) -> tuple[int, ...]:
    """A free first dimension is the request's rows, other free ones are 1."""
    return of_rows(tuple([1 if dim == FREE and axis else dim for axis, dim in enumerate(info.shape)]), rows)


def rows_of(tensors: Sequence[RawTensor]) -> int:
    """Of the first input that is no scalar."""
    return next((tensor.shape[0] for tensor in tensors if tensor.shape), 1)


def infos_of(instance: Instance) -> dict[str, TensorInfo]:
    if instance.loaded is None:
        raise ModelNotReady(f"model {instance.name} is not loaded at the moment")
    return {info.name: info for info in instance.loaded.signature.inputs}
