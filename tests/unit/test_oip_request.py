from __future__ import annotations

import json
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest

from mesh.errors import InvalidRequest, MeshError, PayloadTooLarge
from mesh.oip import request as request_module
from mesh.oip.recent import Recent
from mesh.oip.request import InferRequest, Limits, RequestedOutput, WireBody, decode_request, encode_request
from mesh.oip.tensor import Tensor
from tests.malformed import HEADER, MALFORMED, Malformed, binary_input, good_json, joined, json_input

LIMITS = Limits()
ROW = np.arange(16, dtype="<i4").reshape(1, 16)


def decode(head: Any, tensors: bytes | None = None, limits: Limits = LIMITS) -> InferRequest:
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    length = None if tensors is None else len(text)
    return decode_request("simple", "1", text + (tensors or b""), length, limits)


def test_the_list_of_malformed_requests_is_one() -> None:
    assert len(MALFORMED) >= 60
    assert len({m.name for m in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize("malformed", [m for m in MALFORMED if m.codec], ids=lambda m: m.name)
def test_malformed(malformed: Malformed) -> None:
    header = malformed.headers.get(HEADER)
    for _ in range(2):  # what was refused must not be remembered as good
        with pytest.raises(MeshError) as caught:
            decode_request("simple", "", malformed.body, None if header is None else int(header), LIMITS)
        assert malformed.text in caught.value.text
        assert caught.value.status in malformed.status
        assert len(caught.value.text) < 400


@pytest.mark.parametrize("malformed", [m for m in MALFORMED if not m.codec], ids=lambda m: m.name)
def test_malformed_for_a_model_or_a_door_only(malformed: Malformed) -> None:
    header = malformed.headers.get(HEADER)
    if header is not None:
        assert not header.isdigit() or int(header) == 0
    else:
        assert decode_request("simple", "", malformed.body, None, LIMITS).inputs


@pytest.mark.parametrize("header_length", [-1, -(10**5000), 10**5000, 2**63], ids=["-1", "-big", "big", "2**63"])
def test_header_lengths_no_header_can_carry(header_length: int) -> None:
    with pytest.raises(InvalidRequest, match=HEADER):
        decode_request("simple", "", b"{}", header_length, LIMITS)


def test_json_request() -> None:
    request = decode(
        good_json(
            id="42",
            parameters={"sequence_id": 7, "sequence_start": True, "note": "x", "scale": 0.5, "timeout": 1500},
            outputs=[{"name": "OUTPUT1"}, {"name": "OUTPUT0", "parameters": {"binary_data": True, "x": 1}}],
            unknown={"ignored": [1, {}]},
        )
    )
    assert (request.model, request.version, request.id) == ("simple", "1", "42")
    assert request.parameters == {
        "sequence_id": 7,
        "sequence_start": True,
        "note": "x",
        "scale": 0.5,
        "timeout": 1500,
    }
    assert [t.name for t in request.inputs] == ["INPUT0", "INPUT1"]
    assert request.inputs[0].numpy().tolist() == [[1] * 16]
    assert request.outputs == (RequestedOutput("OUTPUT1", False, {}), RequestedOutput("OUTPUT0", True, {"x": 1}))
    assert (request.timeout_us, request.priority, request.binary_default) == (1500, 0, False)


def test_binary_request_is_not_copied_and_forwarded_as_it_came() -> None:
    body, headers = joined({"inputs": [binary_input(), binary_input("INPUT1")]}, ROW.tobytes() + (ROW * 2).tobytes())
    buffer = bytearray(body)
    for _ in range(2):  # parsed, then from the cache
        request = decode_request("simple", "1", buffer, int(headers[HEADER]), LIMITS)
        assert request.body() is request.wire
        assert request.body().parts[0] is buffer
        second = request.inputs[1].numpy()
        np.testing.assert_array_equal(second, ROW * 2)
        buffer[-4:] = (5).to_bytes(4, "little")
        assert second[0, 15] == 5
        buffer[-4:] = (30).to_bytes(4, "little")
        assert request.inputs[0].parameters == {}


def test_binary_and_json_inputs_in_one_request() -> None:
    request = decode({"inputs": [json_input("A"), binary_input("B"), json_input("C", data=[2] * 16)]}, ROW.tobytes())
    assert [t.numpy().sum() for t in request.inputs] == [16, 120, 32]


def test_json_only_with_a_header_length() -> None:
    assert decode(good_json(), b"").inputs == decode(good_json()).inputs


def test_defaults_for_outputs() -> None:
    head = good_json(
        parameters={"binary_data_output": True},
        outputs=[{"name": "A"}, {"name": "B", "parameters": {"binary_data": False}}],
    )
    request = decode(head)
    assert request.binary_default is True
    assert [o.binary for o in request.outputs] == [True, False]
    assert request.parameters == {}


def test_zero_sized_and_scalar_tensors() -> None:
    head = {
        "inputs": [
            json_input("A", shape=[0, 16], data=[]),
            json_input("B", shape=[2, 0, 3], data=[[], []]),
            json_input("C", shape=[], data=[7]),
            binary_input("D", 0, shape=[0]),
            binary_input("E", 0, shape=[3, 0], datatype="BYTES"),
        ]
    }
    request = decode(head, b"")
    assert [t.numpy().shape for t in request.inputs] == [(0, 16), (2, 0, 3), (), (0,), (3, 0)]


@pytest.mark.parametrize(
    "value", [-1, True, 1.0, "1", 2**64, 10**5000], ids=["-1", "bool", "float", "str", "2**64", "big"]
)
def test_timeout_and_priority_of_a_request_made_by_hand_are_checked_too(value: Any) -> None:
    request = InferRequest("m", "", "", {"timeout": value, "priority": value}, (), (), True, None)
    with pytest.raises(InvalidRequest, match="'timeout'"):
        _ = request.timeout_us
    with pytest.raises(InvalidRequest, match="'priority'"):
        _ = request.priority


def test_limits() -> None:
    small = Limits(max_body_bytes=100)
    with pytest.raises(PayloadTooLarge, match="limit of 100"):
        decode(good_json(), limits=small)
    with pytest.raises(PayloadTooLarge, match="as binary data"):
        decode(good_json(), limits=Limits(max_json_bytes=100))
    with pytest.raises(PayloadTooLarge, match="JSON head"):
        decode({"inputs": [binary_input()]}, bytes(64), Limits(max_header_bytes=10))
    with pytest.raises(InvalidRequest, match="over the limit of 1"):
        decode(good_json(), limits=Limits(max_rank=1))
    with pytest.raises(PayloadTooLarge, match="more than 1 inputs"):
        decode(good_json(), limits=Limits(max_inputs=1))
    strings = json_input(datatype="BYTES", shape=[3], data=["a"] * 3)
    with pytest.raises(PayloadTooLarge, match="3 elements of BYTES"):
        decode({"inputs": [strings]}, limits=Limits(max_bytes_elements=2))


def test_the_same_head_under_other_limits_is_judged_anew() -> None:
    head = {"inputs": [binary_input()]}
    decode(head, bytes(64))
    with pytest.raises(PayloadTooLarge):
        decode(head, bytes(64), Limits(max_body_bytes=100))


def test_the_same_head_with_other_tensor_bytes_is_judged_anew() -> None:
    head = {"inputs": [binary_input(size=5, datatype="BYTES", shape=[1])]}
    assert decode(head, b"\1\0\0\0a").inputs[0].elements() == [b"a"]
    assert decode(head, b"\1\0\0\0b").inputs[0].elements() == [b"b"]
    with pytest.raises(InvalidRequest, match=r"input 'INPUT0': .*incomplete"):
        decode(head, b"\2\0\0\0c")
    with pytest.raises(InvalidRequest, match="incomplete"):
        decode(head, b"\1\0\0\0")
    with pytest.raises(InvalidRequest, match="additional"):
        decode(head, b"\1\0\0\0cd")


def test_requests_with_the_same_head_share_nothing_that_changes() -> None:
    head = {"inputs": [binary_input(parameters={"binary_data_size": 64, "x": 1})], "parameters": {"timeout": 5}}
    for _ in range(3):
        request = decode(head, bytes(64))
        assert request.parameters == {"timeout": 5}
        assert request.inputs[0].parameters == {"x": 1}
        request.parameters["timeout"] = 6
        request.inputs[0].parameters["x"] = 2


def test_heads_with_an_id_or_over_4_kib_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: Recent[bytes, Any] = Recent(8)
    monkeypatch.setattr(request_module, "_plans", plans)
    decode({"id": "1", "inputs": [binary_input()]}, bytes(64))
    decode({"inputs": [binary_input()], "padding": "x" * 4096}, bytes(64))
    decode(good_json(), b"")
    decode(good_json())
    assert len(plans) == 0
    decode({"inputs": [binary_input()]}, bytes(64))
    assert len(plans) == 1


def test_recent_is_bounded_and_keeps_what_is_used() -> None:
    recent: Recent[int, int] = Recent(4)
    recent.put(-1, 0)
    for key in range(1000):
        recent.put(key, key)
        assert recent.get(-1) == 0
        assert len(recent) <= 8
    assert recent.get(0) is None
    assert recent.get(999) == 999


def test_encode_is_what_decode_reads() -> None:
    inputs = (Tensor.from_numpy("A", ROW), Tensor.from_numpy("B", np.array(["x", "yz"])))
    outputs = (RequestedOutput("Y", True, {}), RequestedOutput("Z", False, {"k": "v"}))
    request = InferRequest("simple", "1", "id-1", {"timeout": 9, "s": "ä"}, inputs, outputs, True, None)
    wire = request.body()
    assert request.body() is wire
    assert wire.nbytes == len(wire.joined())
    back = decode_request("simple", "1", wire.joined(), wire.header_length, LIMITS)
    assert msgspec.structs.replace(back, wire=None) == msgspec.structs.replace(request, wire=None)


def test_encode_follows_a_change() -> None:
    request = decode({"inputs": [binary_input()]}, ROW.tobytes())
    request.parameters["timeout"] = 77
    wire = encode_request(request)
    assert decode_request("simple", "1", wire.joined(), wire.header_length, LIMITS).timeout_us == 77


@pytest.mark.parametrize("value", [None, [1], {}, float("nan"), float("inf"), 2**64, "\ud800", object()])
def test_encode_refuses_parameters_the_protocol_has_no_form_for(value: Any) -> None:
    request = InferRequest("m", "", "", {"p": value}, (Tensor.from_numpy("A", ROW),), (), True, None)
    with pytest.raises(InvalidRequest, match="parameter"):
        encode_request(request)


def test_a_wire_body_counts_bytes_and_joins_parts() -> None:
    floats = np.arange(4, dtype="<f8").data
    body = WireBody((b"ab", bytearray(b"c"), floats), 2)
    assert body.nbytes == 35
    assert body.joined() == b"abc" + floats.tobytes()
    whole = b"xyz"
    assert WireBody((whole,), None).joined() is whole


def test_claims_cost_no_memory() -> None:
    claims = [m for m in MALFORMED if m.codec and m.name.startswith(("a billion", "size of a gig", "dimension of"))]
    assert len(claims) >= 4
    tracemalloc.start()
    try:
        for claim in claims:
            header = claim.headers.get(HEADER)
            with pytest.raises(MeshError):
                decode_request("simple", "", claim.body, None if header is None else int(header), LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
