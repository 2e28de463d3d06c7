"""Raw requests: the body is the value of a model's one input, with no head at all (Triton's binary extension, header
length 0; a camera's or sensor's bytes over MQTT).

Pure. Not here: where bodies come from, finding the model's metadata.
"""

from __future__ import annotations

from math import prod

from mesh.errors import InvalidRequest
from mesh.oip.datatypes import DATATYPES
from mesh.oip.request import InferRequest
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Buffer, buffer_bytes, quoted
from mesh.values import ModelMetadata, ModelRef, TensorSpec


def raw_request(ref: ModelRef, metadata: ModelMetadata, body: Buffer, *, binary: bool = True) -> InferRequest:
    """One row for the one input of the model; ``binary`` is how all outputs are answered.

    A free first dimension is 1; of the others one may be free, and is what the body has room for. BYTES is one element.
    Raises ``InvalidRequest`` where the model, or the size of the body, does not allow it.
    """
    if len(metadata.inputs) != 1:
        names = [spec.name for spec in metadata.inputs]
        raise InvalidRequest(f"a raw request is for models with one input, {metadata.name!r} has {names}")
    spec = metadata.inputs[0]
    size = buffer_bytes(body)
    if spec.datatype == "BYTES":
        _shape(spec, 1)
        data: Buffer = b"".join((size.to_bytes(4, "little"), body))
        tensor = Tensor(spec.name, spec.datatype, tuple(max(dim, 1) for dim in spec.shape), data)
    else:
        item_bytes = DATATYPES[spec.datatype].item_bytes
        if size % item_bytes:
            raise InvalidRequest(f"the raw request has {size} bytes, which are no elements of {spec.datatype}")
        tensor = Tensor(spec.name, spec.datatype, _shape(spec, size // item_bytes), body)
    return InferRequest(ref.name, ref.version, "", {}, (tensor,), (), binary, None)


def _shape(spec: TensorSpec, count: int) -> tuple[int, ...]:
    shape = list(spec.shape)
    if shape and shape[0] == -1 and (len(shape) > 1 or count == 1):
        shape[0] = 1
    free = [axis for axis, dim in enumerate(shape) if dim == -1]
    known = prod(dim for dim in shape if dim != -1)
    if len(free) > 1:
        raise InvalidRequest(
            f"input {quoted(spec.name)} has more than one free dimension: a raw request fits none of them"
        )
    if free and known and count % known == 0:
        shape[free[0]] = count // known
    elif free or count != known:
        raise InvalidRequest(
            f"the raw request has {count} elements, input {quoted(spec.name)} takes "
            f"{'a multiple of ' if free else ''}{known} for its shape {list(spec.shape)}"
        )
    return tuple(shape)
