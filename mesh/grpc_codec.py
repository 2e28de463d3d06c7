"""Inference messages of gRPC to our own requests (OIP "gRPC API", Triton's extensions).

Contents are raw, or typed by datatype, never both. Not here: answers (``grpc_reply``), the other messages
(``grpc_door``), what a model takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.datatypes import DATATYPES, Array
from mesh.oip.head import (
    REGION,
    TensorHead,
    binary_tensor,
    check_parameters,
    check_unique,
    checked_shape,
    place_of,
)
from mesh.oip.request import InferRequest, RequestedOutput, check_times
from mesh.oip.tensor import Tensor, pack_elements, raw_bytes
from mesh.oip.wire import Buffer, Limits, quoted

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where typed elements of a datatype stand. FP16 and BF16 have no typed form."""

WIDE = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}
"""Contents that carry narrower datatypes too."""


def read_request(message: Any, limits: Limits) -> InferRequest:
    """Raises ``InvalidRequest``, ``PayloadTooLarge`` or ``Unsupported``, and nothing else."""
    if not message.inputs:
        raise InvalidRequest("the request has no inputs")
    if len(message.inputs) > limits.max_inputs or len(message.outputs) > limits.max_outputs:
        raise PayloadTooLarge(f"the request has more than {limits.max_inputs} inputs or {limits.max_outputs} outputs")
    check_unique((tensor.name for tensor in message.inputs), "input")
    parameters = read_parameters(message.parameters)
    check_parameters(parameters, "the request")
    parameters.pop("binary_data_output", None)  # of HTTP: here every answer is binary
    check_times(parameters)
    inputs, outputs = _inputs(message, limits), _outputs(message)
    who = message.model_name, message.model_version, message.id
    return InferRequest(*who, parameters, inputs, outputs, binary_default=True, wire=None)


def read_parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ``InvalidRequest`` for one without a value."""
    values = {}
    for name, parameter in found.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"parameter {quoted(name)} has no value")
        values[name] = getattr(parameter, kind)
    return values


def _inputs(message: Any, limits: Limits) -> tuple[Tensor, ...]:
    raw, tensors = message.raw_input_contents, []
    if raw:
        _only_raw(message)
    rest = iter(raw)
    for found in message.inputs:
        what = f"input {quoted(found.name)}"
        head = TensorHead(found.name, found.datatype, list(found.shape), read_parameters(found.parameters))
        check_parameters(head.parameters, what)
        if REGION in head.parameters:
            tensors.append(_elsewhere(head, found, what, limits))
            continue
        data = next(rest) if raw else _typed(head, found.contents, what, limits)
        tensors.append(binary_tensor(head, len(data), memoryview(data), what, limits))
    return tuple(tensors)


def _only_raw(message: Any) -> None:
    """Every input has raw contents, but for those in shared memory. The first text is Triton's: its clients read it.

    Contents that hold nothing say nothing: mlserver's client puts them beside the raw ones.
    """
    for found in message.inputs:
        if found.contents.ByteSize():
            raise InvalidRequest(
                "contents field must not be specified when using raw_input_contents for "
                f"{quoted(found.name)} for model {quoted(message.model_name)}"
            )
    own = sum(REGION not in found.parameters for found in message.inputs)
    if len(message.raw_input_contents) != own:
        raise InvalidRequest(f"the request has {len(message.raw_input_contents)} raw contents for {own} inputs")


def _elsewhere(head: TensorHead, found: Any, what: str, limits: Limits) -> Tensor:
    """A tensor in shared memory: its bytes are checked when they are fetched."""
    if found.HasField("contents"):
        raise InvalidRequest(f"{what} has contents beside shared memory: give one of them")
    place_of(head.parameters, what)
    shape, _, _ = checked_shape(head, what, limits)
    return Tensor(head.name, head.datatype, shape, b"", head.parameters)


def _typed(head: TensorHead, contents: Any, what: str, limits: Limits) -> Buffer:
    field = CONTENTS.get(head.datatype)
    if field is None and head.datatype in DATATYPES:
        raise InvalidRequest(f"{what}: {head.datatype} has no typed form, send it raw")
    _, count, _ = checked_shape(head, what, limits)
    assert field is not None  # noqa: S101 - an unknown datatype was just refused
    elements = getattr(contents, field)
    given = [name for name in CONTENTS.values() if name != field and len(getattr(contents, name))]
    if given:
        raise InvalidRequest(f"{what} is {head.datatype}, whose elements stand in {field}, not in {given[0]}")
    if len(elements) != count:
        raise InvalidRequest(f"{what}: expected {count} elements for its shape, got {len(elements)}")
    if head.datatype == "BYTES":
        return pack_elements(elements, what)
    dtype = DATATYPES[head.datatype].dtype
    array: Array = np.fromiter(elements, dtype=WIDE.get(field, dtype), count=count)
    narrow = array.astype(dtype, copy=False)
    if not np.array_equal(narrow, array, equal_nan=dtype.kind == "f"):
        raise InvalidRequest(f"{what}: an element is out of the range of {head.datatype}")
    return raw_bytes(narrow)


def _outputs(message: Any) -> tuple[RequestedOutput, ...]:
    check_unique((output.name for output in message.outputs), "output request")
    outputs = []
    for output in message.outputs:
        parameters, what = read_parameters(output.parameters), f"requested output {quoted(output.name)}"
        check_parameters(parameters, what)
        place_of(parameters, what)
        parameters.pop("binary_data", None)
        outputs.append(RequestedOutput(output.name, True, parameters))
    return tuple(outputs)
