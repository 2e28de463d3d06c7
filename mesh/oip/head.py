"""The JSON head of requests and responses: its typed form, and the checks of everything it says about tensors.

Sizes are computed with Python's integers, which cannot overflow, and compared with the bytes that are there before
anything is allocated. Not here: what is special to requests or to responses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from math import prod
from typing import Any, Literal, NamedTuple

import msgspec

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.oip.datatypes import DATATYPES
from mesh.oip.json_data import decode_data, parse
from mesh.oip.tensor import Tensor, check_elements
from mesh.oip.wire import Limits, quoted

Parameter = bool | int | float | str
Side = Literal["input", "output"]

HEADER = "Inference-Header-Content-Length"
MAX_DIM = 2**63 - 1
REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
"""Parameters of a tensor whose bytes are in shared memory of the door's host (Triton's extension)."""
_NOT_JSON = re.compile(rb"[\[,:\s]-?(?:NaN|Infinity|nan|inf)\b")


class Place(NamedTuple):
    """Bytes of a shared memory region."""

    region: str
    offset: int
    byte_size: int


class TensorHead(msgspec.Struct):
    """An input of a request or an output of a response; ``data`` stays text until datatype and shape are known."""

    name: str
    datatype: str
    shape: list[Any]
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw = msgspec.Raw()


def split(view: memoryview, header_length: int | None, limits: Limits) -> tuple[memoryview, memoryview | None]:
    """The JSON head and the binary tensors behind it, None where the body is JSON only."""
    if view.nbytes > limits.max_body_bytes:
        raise PayloadTooLarge(f"the body has {view.nbytes} bytes, over the limit of {limits.max_body_bytes}")
    if header_length is None:
        if view.nbytes > limits.max_json_bytes:
            raise PayloadTooLarge(
                f"the JSON body has {view.nbytes} bytes, over the limit of {limits.max_json_bytes}: "
                "send large tensors as binary data"
            )
        return view, None
    if header_length == 0:
        raise InvalidRequest(f"{HEADER} 0 is a raw request, which has no head to read: it is the door's to take")
    if not 0 < header_length <= view.nbytes:
        raise InvalidRequest(
            f"{HEADER} must be between 0 and the body's {view.nbytes} bytes, got {quoted(header_length)}"
        )
    if header_length > limits.max_header_bytes:
        raise PayloadTooLarge(f"the JSON head has {header_length} bytes, over the limit of {limits.max_header_bytes}")
    return view[:header_length], view[header_length:]


def parse_head(decoder: msgspec.json.Decoder[Any], text: memoryview, what: str) -> Any:
    """Decode a head, and say what to do about the commonest thing that is not JSON."""
    try:
        return parse(decoder, text, what)
    except InvalidRequest as error:
        if "malformed" in error.text and _NOT_JSON.search(text):
            raise InvalidRequest(f"{error.text}; JSON has no NaN or Infinity, send them as binary data") from None
        raise


def read_tensors(heads: list[TensorHead], tail: memoryview | None, side: Side, limits: Limits) -> tuple[Tensor, ...]:
    """Tensors on the memory of ``tail``, where they lie one behind the other in the order of ``heads``."""
    check_unique((head.name for head in heads), side)
    tensors = []
    at = 0
    for head in heads:
        what = f"{side} {quoted(head.name)}"
        if REGION in head.parameters:
            tensors.append(_elsewhere(head, what, limits))
            continue
        size = binary_size(head, what)
        if size is None:
            tensors.append(_json_tensor(head, what, limits))
            continue
        if tail is None:
            raise InvalidRequest(f"{what} has 'binary_data_size', but the request has no header {HEADER}")
        tensors.append(binary_tensor(head, size, tail[at:], what, limits))
        at += size
    if tail is not None and at != tail.nbytes:
        raise InvalidRequest(
            f"unexpected additional {side} data: expected {at} bytes of binary tensors, got {tail.nbytes}"
        )
    return tuple(tensors)


def check_unique(names: Iterable[str], what: str) -> None:
    seen = set()
    for name in names:
        if not name:
            raise InvalidRequest(f"an {what} has an empty name")
        if name in seen:
            raise InvalidRequest(f"duplicate {what} {quoted(name)}")
        seen.add(name)


def binary_size(head: TensorHead, what: str) -> int | None:
    """Bytes of binary data that a tensor claims, taken off ``parameters``; None where its data is in the head."""
    check_parameters(head.parameters, what)
    has_data = memoryview(head.data).nbytes > 0
    size = head.parameters.pop("binary_data_size", None)
    if size is None:
        if not has_data:
            raise InvalidRequest(f"{what} has neither 'data' nor the parameter 'binary_data_size'")
        return None
    if has_data:
        raise InvalidRequest(f"{what} must not have both 'data' and the parameter 'binary_data_size'")
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"'binary_data_size' of {what} must be a count of bytes, got {quoted(size)}")
    return size


def check_parameters(parameters: dict[str, Any], what: str) -> None:
    """Only what OIP knows, in the ranges gRPC can carry too. Raises ``InvalidRequest``."""
    for name, value in parameters.items():
        if name.startswith("shared_memory_") and REGION not in parameters:
            raise InvalidRequest(f"{what} has parameter {quoted(name)} without {REGION!r}")
        if not isinstance(value, (bool, int, float, str)):
            raise InvalidRequest(
                f"parameter {quoted(name)} of {what} must be a bool, number or string, got {type(value).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise InvalidRequest(f"parameter {quoted(name)} of {what} is out of the range of 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"parameter {quoted(name)} of {what} must be a finite number")


def pop_flag(parameters: dict[str, Any], name: str, what: str) -> bool | None:
    """Take a boolean off ``parameters``."""
    flag = parameters.pop(name, None)
    if flag is not None and not isinstance(flag, bool):
        raise InvalidRequest(f"parameter {quoted(name)} of {what} must be a bool, got {type(flag).__name__}")
    return flag


def place_of(parameters: dict[str, Any], what: str) -> Place | None:
    """Where the parameters of a tensor say that its bytes are, or go to; None where that is the body."""
    region = parameters.get(REGION)
    if region is None:
        return None
    offset, size = parameters.get(OFFSET, 0), parameters.get(SIZE)
    if not isinstance(region, str) or type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise InvalidRequest(f"{what} needs a text as {REGION!r} and counts of bytes as {SIZE!r} and {OFFSET!r}")
    return Place(region, offset, size)


def _elsewhere(head: TensorHead, what: str, limits: Limits) -> Tensor:
    """A tensor without its bytes, which lie in shared memory."""
    check_parameters(head.parameters, what)
    if memoryview(head.data).nbytes or "binary_data_size" in head.parameters:
        raise InvalidRequest(f"{what} must not have data beside its shared memory")
    place_of(head.parameters, what)
    shape, _, _ = checked_shape(head, what, limits)
    return Tensor(head.name, head.datatype, shape, b"", head.parameters)


def _json_tensor(head: TensorHead, what: str, limits: Limits) -> Tensor:
    shape, count, _ = checked_shape(head, what, limits)
    data = decode_data(head.data, head.datatype, shape, count, what)
    return Tensor(head.name, head.datatype, shape, data, head.parameters)


def binary_tensor(head: TensorHead, size: int, rest: memoryview, what: str, limits: Limits) -> Tensor:
    """A tensor on the first ``size`` bytes of ``rest``. Raises ``InvalidRequest`` if they are not what it says."""
    shape, count, item_bytes = checked_shape(head, what, limits)
    if item_bytes and size != count * item_bytes:
        raise InvalidRequest(
            f"input byte size mismatch for {what}: shape {_shown(shape)} of {head.datatype}. "
            f"Expected {count * item_bytes}, got {size}"
        )
    if size > rest.nbytes:
        raise InvalidRequest(f"the binary data of {what} is incomplete. Expected {size} bytes, got {rest.nbytes}")
    data = rest[:size]
    if not item_bytes:
        check_elements(data, count, what)
    return Tensor(head.name, head.datatype, shape, data, head.parameters)


def checked_shape(head: TensorHead, what: str, limits: Limits) -> tuple[tuple[int, ...], int, int]:
    """Shape, number of elements, and bytes of one (0 for BYTES). Raises ``InvalidRequest`` or ``PayloadTooLarge``."""
    known = DATATYPES.get(head.datatype)
    if known is None:
        raise InvalidRequest(f"invalid datatype {quoted(head.datatype)} for {what}")
    if len(head.shape) > limits.max_rank:
        raise InvalidRequest(
            f"the shape of {what} has {len(head.shape)} dimensions, over the limit of {limits.max_rank}"
        )
    for axis, dim in enumerate(head.shape):
        if type(dim) is not int:
            raise InvalidRequest(f"dimension {axis} of {what} must be an integer, got {type(dim).__name__}")
        if not 0 <= dim <= MAX_DIM:
            raise InvalidRequest(f"dimension {axis} of {what} is out of range. Expected 0 to {MAX_DIM}")
    shape = tuple(head.shape)
    # numpy and the runtimes multiply zero dimensions as ones; an element of BYTES is a pointer of 8 bytes to them
    if prod(dim or 1 for dim in shape) * (known.item_bytes or 8) > MAX_DIM:
        raise InvalidRequest(f"the shape of {what} is too large: {_shown(shape)}")
    count = prod(shape)
    if not known.item_bytes and count > limits.max_bytes_elements:
        raise PayloadTooLarge(f"{what} has {count} elements of BYTES, over the limit of {limits.max_bytes_elements}")
    return shape, count, known.item_bytes


def _shown(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
