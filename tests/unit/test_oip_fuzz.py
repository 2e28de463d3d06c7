"""Properties of the codec: what goes in comes out, and no bytes at all make it fail in an undeclared way."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mesh.errors import MeshError, ProtocolError
from mesh.oip.datatypes import DATATYPES, Array
from mesh.oip.request import InferRequest, Limits, RequestedOutput, decode_request, encode_request
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from tests.malformed import HEADER, MALFORMED, binary_input, good_json, joined

LIMITS = Limits(max_body_bytes=1 << 20)
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A slow machine is no failure."""
MUTATION_BYTES = 8 << 20
"""Ceiling for decoding a body of a few kilobytes: far over the real cost, far under any claim."""

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
parameters = st.dictionaries(
    names.filter(lambda n: not n.startswith(("shared_memory_", "binary_data")) and n not in ("timeout", "priority")),
    st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=3,
)


def an_array(datatype: str, *, finite: bool, text: bool) -> st.SearchStrategy[Array]:
    if datatype == "BYTES":
        elements: Any = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(str.encode)
        if not text:
            elements = st.binary(max_size=6)
        return arrays.arrays(object, shapes, elements=elements, fill=st.just(b""))
    dtype = DATATYPES[datatype].dtype
    if datatype == "BF16" and finite:
        return arrays.arrays(dtype, shapes, elements=st.integers(0, 0x7F7F) | st.integers(0x8000, 0xFF7F))
    options: Any = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" and finite else {}
    return arrays.arrays(dtype, shapes, elements=arrays.from_dtype(dtype, **options))


@st.composite
def a_tensor(draw: st.DrawFn, *, finite: bool = False, text: bool = False) -> Tensor:
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    array = draw(an_array(datatype, finite=finite, text=text))
    return Tensor.from_numpy(draw(names), array, datatype)


def tensors(*, finite: bool = False, text: bool = False) -> st.SearchStrategy[tuple[Tensor, ...]]:
    unique = st.lists(a_tensor(finite=finite, text=text), min_size=1, max_size=4, unique_by=lambda t: t.name)
    return unique.map(tuple)


def same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    def key(tensor: Tensor) -> tuple[Any, ...]:
        return tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)

    return [key(t) for t in got] == [key(t) for t in expected]


@CALM
@given(tensors(), parameters, st.lists(names, max_size=3, unique=True), st.sampled_from(["", "7", "ä"]), st.booleans())
def test_binary_requests_round_trip(
    inputs: tuple[Tensor, ...], extra: dict[str, Any], wanted: list[str], request_id: str, binary: bool
) -> None:
    outputs = tuple(RequestedOutput(name, index % 2 == 0, {}) for index, name in enumerate(wanted))
    wire = encode_request(InferRequest("m", "1", request_id, extra, inputs, outputs, binary, None))
    for _ in range(2):  # parsed, then from the cache
        back = decode_request("m", "1", wire.joined(), wire.header_length, LIMITS)
        assert same(back.inputs, inputs)
        assert (back.id, back.parameters, back.outputs, back.binary_default) == (request_id, extra, outputs, binary)


@CALM
@given(tensors(), st.sampled_from(["", "7"]))
def test_binary_responses_round_trip(outputs: tuple[Tensor, ...], request_id: str) -> None:
    request = InferRequest("m", "", request_id, {}, (), (), True, None)
    wire = encode_response(InferResponse("m", "1", request_id, {}, outputs), request)
    back = decode_response(wire.joined(), wire.header_length)
    assert same(back.outputs, outputs)
    assert back.id == request_id


@CALM
@given(tensors(finite=True, text=True), st.data())
def test_json_and_mixed_responses_round_trip(outputs: tuple[Tensor, ...], data: st.DataObject) -> None:
    asked = tuple(RequestedOutput(t.name, data.draw(st.booleans()), {}) for t in outputs)
    wire = encode_response(
        InferResponse("m", "1", "", {}, outputs), InferRequest("m", "", "", {}, (), asked, True, None)
    )
    assert same(decode_response(wire.joined(), wire.header_length).outputs, outputs)


@CALM
@given(tensors(finite=True, text=True))
def test_json_inputs_are_read_flat_and_nested_alike(inputs: tuple[Tensor, ...]) -> None:
    wire = encode_response(
        InferResponse("m", "", "", {}, inputs), InferRequest("m", "", "", {}, (), (), False, None)
    )  # an output in JSON is an input in JSON
    flat = json.loads(wire.joined())["outputs"]
    nested = [head | {"data": _nested(head["data"], head["shape"])} for head in flat]
    for heads in (flat, nested):
        body = json.dumps({"inputs": heads}, ensure_ascii=False).encode()
        assert same(decode_request("m", "", body, None, LIMITS).inputs, inputs)


def _nested(flat: list[Any], shape: list[int]) -> list[Any]:
    if len(shape) < 2:
        return flat
    size = len(flat) // shape[0] if shape[0] else 0
    return [_nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


_BINARY, _HEADERS = joined(
    {
        "id": "a",
        "parameters": {"timeout": 1000},
        "inputs": [binary_input(), binary_input("T", 14, datatype="BYTES", shape=[2])],
        "outputs": [{"name": "Y", "parameters": {"binary_data": True}}],
    },
    bytes(64) + b"\3\0\0\0abc\3\0\0\0def",
)
_GOOD = [
    (json.dumps(good_json(id="1", outputs=[{"name": "Y"}])).encode(), None),
    (_BINARY, int(_HEADERS[HEADER])),
    (_BINARY.replace(b'"id": "a", ', b""), int(_HEADERS[HEADER]) - len(b'"id": "a", ')),
]
_SEEDS = _GOOD + [
    (m.body, int(m.headers[HEADER]) if HEADER in m.headers else None)
    for m in MALFORMED
    if len(m.body) < 4096 and m.headers.get(HEADER, "0").isdigit()
]
_TOKENS = [
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"1.5",
    b"[]",
    b"{}",
    b'""',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b'"',
    b"\\u0000",
]
_TOKENS += [b"9" * 30, b"9" * 400, b"\xff", b"\0", b"\xff\xff\xff\xff", b'"data":[1],', b'"binary_data_size":3,']


def test_the_seeds_of_mutation_are_good() -> None:
    for body, header_length in _GOOD:
        assert decode_request("m", "", body, header_length, LIMITS).inputs


@st.composite
def a_mutation(draw: st.DrawFn) -> tuple[bytes, int | None]:
    seed, header_length = draw(st.sampled_from(_SEEDS))
    body = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.sampled_from([0, 0, 1, 1, 2, 4, 16])))
        body[start:end] = draw(st.sampled_from(_TOKENS) | st.binary(max_size=3))
    if header_length is not None:
        header_length += draw(st.sampled_from([0, 0, len(body) - len(seed), -1, 1, 1000]))
    return bytes(body), header_length


def _decode_anything(body: bytes, header_length: int | None) -> None:
    """Either a good value or a declared error; what is good can be read as numpy and written again."""
    try:
        request = decode_request("m", "", body, header_length, LIMITS)
    except MeshError as error:
        assert error.status in (400, 413, 501)  # noqa: PT017 - raising is one of two good ends
    else:
        for tensor in request.inputs:
            assert tensor.numpy().shape == tensor.shape
        assert request.priority >= 0
        again = encode_request(request)
        assert same(decode_request("m", "", again.joined(), again.header_length, LIMITS).inputs, request.inputs)
    try:
        decode_response(body.replace(b'"inputs"', b'"model_name":"m","outputs"', 1), header_length)
    except ProtocolError:
        return


@settings(CALM, max_examples=400)
@given(a_mutation())
def test_mutations_raise_declared_errors_only(mutation: tuple[bytes, int | None]) -> None:
    _decode_anything(*mutation)


@settings(CALM, max_examples=200)
@given(st.binary(max_size=200), st.none() | st.integers(-3, 220))
@example(b"", None)
@example(b"", 0)
@example(b"{}", 2)
def test_arbitrary_bytes_raise_declared_errors_only(body: bytes, header_length: int | None) -> None:
    _decode_anything(body, header_length)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["FP32", "BYTES", "INT64", "BOOL", "BF16", 2**63, 2**64, -(2**63) - 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@settings(CALM, max_examples=400)
@given(st.data())
def test_wrong_types_anywhere_raise_declared_errors_only(data: st.DataObject) -> None:
    tensor = data.draw(
        st.fixed_dictionaries(
            {"name": st.just("X") | json_values, "shape": st.lists(st.integers(0, 3), max_size=3) | json_values},
            optional={
                "datatype": st.sampled_from([*DATATYPES, "X"]) | json_values,
                "data": json_values,
                "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "a"]), json_values) | json_values,
            },
        )
    )
    head = data.draw(
        st.fixed_dictionaries(
            {"inputs": st.just([tensor]) | json_values},
            optional={
                "id": json_values,
                "parameters": st.dictionaries(st.sampled_from(["timeout", "priority", "a"]), json_values),
                "outputs": st.lists(st.fixed_dictionaries({"name": json_values})) | json_values,
            },
        )
    )
    text = json.dumps(head).encode()
    _decode_anything(text, data.draw(st.sampled_from([None, len(text)])))


@pytest.mark.parametrize("element", [b"0,", b'"",', b"[],", b"[[0]],", b"{},", b"true,"])
def test_a_small_body_never_takes_much_memory(element: bytes) -> None:
    """16 times its text and a margin is the documented most (``Limits.max_json_bytes``); a Python list is 8 of it."""
    text = element * (200_000 // len(element))
    body = b'{"inputs":[{"name":"X","datatype":"FP64","shape":[3],"data":[' + text[:-1] + b"]}]}"
    tracemalloc.start()
    try:
        with pytest.raises(MeshError):
            decode_request("m", "", body, None, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(body)


def test_mutations_of_a_kilobyte_never_take_megabytes() -> None:
    @settings(CALM, max_examples=150, database=None)
    @given(a_mutation())
    def measured(mutation: tuple[bytes, int | None]) -> None:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        _decode_anything(*mutation)
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < MUTATION_BYTES

    tracemalloc.start()
    try:
        measured()
    finally:
        tracemalloc.stop()


def test_floats_survive_json_bit_by_bit() -> None:
    words = np.random.default_rng(3).integers(0, 1 << 32, 5000, dtype="u4").view("<f4")
    tensor = Tensor.from_numpy("Y", words[np.isfinite(words)])
    wire = encode_response(
        InferResponse("m", "", "", {}, (tensor,)), InferRequest("m", "", "", {}, (), (), False, None)
    )
    assert same(decode_response(wire.joined(), None).outputs, (tensor,))
