"""The ``data`` of a tensor as JSON, both ways: flat or nested in, flat out (as Triton answers).

FP16 and BF16 are plain numbers here, which Triton refuses: a superset. BF16 is rounded by way of float32. JSON has no
NaN and no Infinity: on the way in they are not JSON, and an output that holds them is refused with the advice to ask
for binary data, since ``null`` would be read as something else by every client. Not here: heads (``head``).
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from mesh.errors import InvalidRequest
from mesh.oip.datatypes import DATATYPES, Array, bf16_to_float32, float32_to_bf16
from mesh.oip.tensor import Tensor, pack_elements, raw_bytes
from mesh.oip.wire import Buffer, quoted

_NESTED = re.compile(rb"\s*\[\s*\[")
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_BF16_INFINITE = 0x7F80


def parse(decoder: msgspec.json.Decoder[Any], text: Any, what: str) -> Any:
    """Decode JSON; every way in which it can be wrong is ``InvalidRequest``."""
    try:
        return decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"unable to parse {what}: {error}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"unable to parse {what}: it is not valid UTF-8") from None
    except RecursionError:
        raise InvalidRequest(f"unable to parse {what}: it is nested too deeply") from None


def decode_data(text: msgspec.Raw, datatype: str, shape: tuple[int, ...], count: int, what: str) -> Buffer:
    """Raw data of a JSON tensor; nested lists must agree with ``shape``, whose product is ``count``.

    Raises ``InvalidRequest`` for elements of another type or out of range, and for any other number of them.
    """
    nested = _NESTED.match(text) is not None
    values: list[Any] = parse(_decoder(datatype, max(len(shape), 1) if nested else 1), text, f"'data' of {what}")
    if nested:
        values = _flattened(values, shape, what)
    if len(values) != count:
        raise InvalidRequest(f"unexpected number of elements in 'data' of {what}. Expected {count}, got {len(values)}")
    if datatype == "BYTES":
        return pack_elements(values, what)
    if datatype == "BOOL":
        return bytes(values)
    return raw_bytes(_floats(values, datatype, what) if datatype in _FLOATS else _integers(values, datatype, what))


def encode_data(tensor: Tensor) -> list[Any]:
    """Flat JSON values of a tensor. Raises ``InvalidRequest`` for what JSON cannot carry."""
    advice = f"output {quoted(tensor.name)} holds {{}}, which JSON cannot carry: request it with binary_data"
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in tensor.elements()]
        except UnicodeDecodeError:
            raise InvalidRequest(advice.format("bytes that are not UTF-8")) from None
    array = tensor.numpy()
    if tensor.datatype == "BF16":
        array = bf16_to_float32(array)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest(advice.format("NaN or Infinity"))
    values: list[Any] = array.reshape(-1).tolist()
    return values


@cache
def _decoder(datatype: str, depth: int) -> msgspec.json.Decoder[Any]:
    element: Any = {"BOOL": bool, "BYTES": str}.get(datatype, float if datatype in _FLOATS else int)
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _flattened(values: list[Any], shape: tuple[int, ...], what: str) -> list[Any]:
    """Row-major elements of lists nested as deep as ``shape``; an axis at a time, so depth costs no recursion."""
    level = [values]
    for axis, expected in enumerate(shape):
        for row in level:
            if len(row) != expected:
                raise InvalidRequest(
                    f"unexpected shape of 'data' of {what}. Expected {expected} elements on axis {axis}, got {len(row)}"
                )
        level = list(chain.from_iterable(level))
    return level


def _integers(values: list[int], datatype: str, what: str) -> Array:
    dtype = DATATYPES[datatype].dtype
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    try:
        wide = np.array(values, dtype="<u8" if datatype == "UINT64" and min(values, default=0) >= 0 else "<i8")
        inside = not values or (low <= int(wide.min()) and int(wide.max()) <= high)
    except OverflowError:
        inside = False
    if not inside:
        index = next(i for i, value in enumerate(values) if not low <= value <= high)
        raise InvalidRequest(f"element {index} in 'data' of {what} is out of range. Expected {low} to {high}")
    return wide.astype(dtype, copy=False)


def _floats(values: list[float], datatype: str, what: str) -> Array:
    exact = np.array(values, dtype="<f8")
    if datatype == "FP64":
        return exact
    with np.errstate(over="ignore"):
        if datatype == "BF16":
            array = float32_to_bf16(exact.astype("<f4"))
            finite = (array & _BF16_INFINITE) != _BF16_INFINITE
        else:
            array = exact.astype(DATATYPES[datatype].dtype)
            finite = np.isfinite(array)
    if not finite.all():
        raise InvalidRequest(f"element {int(np.argmin(finite))} in 'data' of {what} is out of range of {datatype}")
    return array
