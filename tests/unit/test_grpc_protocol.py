"""The messages of gRPC: compiled from what is written, beside other people's, and to requests of ours and back.

Not here: calls (``tests.integration.test_grpc``).
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from mesh.errors import BY_CODE, InvalidRequest, Overloaded, PayloadTooLarge, ProtocolError
from mesh.grpc_codec import CONTENTS, read_request
from mesh.grpc_errors import CODES, code_of, trailers
from mesh.grpc_protocol import HEALTH, INFERENCE, REFLECTION, message_class, methods
from mesh.grpc_reply import encode_part, encode_reply, write_parameters
from mesh.hop import Reply
from mesh.oip.datatypes import DATATYPES
from mesh.oip.request import decode_request, encode_request
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits, WireBody

ROOT = Path(__file__).parents[2]
LIMITS = Limits()
Request = message_class("inference.ModelInferRequest")


def theirs(**fields: Any) -> service_pb2.ModelInferRequest:
    return service_pb2.ModelInferRequest(model_name="m", **fields)


def read(message: service_pb2.ModelInferRequest, limits: Limits = LIMITS) -> Any:
    return read_request(Request.FromString(message.SerializeToString()), limits)


def test_the_descriptors_are_those_of_the_files(tmp_path: Path) -> None:
    folder, made = ROOT / "mesh" / "oip", tmp_path / "made.pb"
    files = ("inference.proto", "health.proto", "reflection_v1.proto", "reflection_v1alpha.proto")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}", *files]
    subprocess.run(command, check=True)
    assert made.read_bytes() == (folder / "protocols.pb").read_bytes(), "run: make protocol"


def test_every_call_of_tritons_is_there_with_its_numbers() -> None:
    """What both know must be the same on the wire."""
    described = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert set(methods(INFERENCE)) == set(described.methods_by_name)
    for name, method in methods(INFERENCE).items():
        for ours, its in (
            (method.request.DESCRIPTOR, described.methods_by_name[name].input_type),
            (method.response.DESCRIPTOR, described.methods_by_name[name].output_type),
        ):
            compare(ours, its, set())
    assert all(methods(name) for name in (HEALTH, *REFLECTION))


def compare(ours: Any, its: Any, seen: set[str]) -> None:
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    known = {field.number: field for field in its.fields}
    for field in ours.fields:
        other = known[field.number]
        same = (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated)
        assert same, (ours.full_name, field.name)
        if field.message_type is not None:
            compare(field.message_type, other.message_type, seen)


def test_raw_contents_are_the_tensors() -> None:
    message = theirs(model_version="2", id="7", raw_input_contents=[b"\x01\x00\x00\x00" * 3, b"\x02\x00\x00\x00ab"])
    message.inputs.add(name="A", datatype="INT32", shape=[1, 3])
    message.inputs.add(name="B", datatype="BYTES", shape=[1])
    message.outputs.add(name="Y").parameters["classification"].int64_param = 3
    message.parameters["priority"].uint64_param = 2
    message.parameters["flag"].bool_param = True
    request = read(message)
    assert (request.model, request.version, request.id, request.priority) == ("m", "2", "7", 2)
    assert request.inputs[0].numpy().tolist() == [[1, 1, 1]]
    assert request.inputs[1].elements() == [b"ab"]
    assert [(o.name, o.binary, o.parameters) for o in request.outputs] == [("Y", True, {"classification": 3})]
    body = encode_request(request)
    assert decode_request("m", "2", body.joined(), body.header_length, LIMITS).parameters == request.parameters


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_come_to_the_same_bytes(datatype: str) -> None:
    values: list[Any] = [b"x", b""] if datatype == "BYTES" else [True, False] if datatype == "BOOL" else [1, 0]
    message = theirs()
    tensor = message.inputs.add(name="A", datatype=datatype, shape=[2])
    getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    (read_tensor,) = read(message).inputs
    wanted = Tensor.from_numpy("A", np.array(values, DATATYPES[datatype].dtype))
    assert bytes(read_tensor.data) == bytes(wanted.data)


def test_contents_that_hold_nothing_may_stand_beside_raw_ones() -> None:
    message = theirs(raw_input_contents=[np.array([1, 2], np.int32).tobytes()])
    message.inputs.add(name="A", datatype="INT32", shape=[2]).contents.SetInParent()
    assert message.inputs[0].HasField("contents")
    assert read(message).inputs[0].numpy().tolist() == [1, 2]


def test_what_does_not_agree_is_refused() -> None:
    def broken(change: Any, text: str, kind: type[Exception] = InvalidRequest) -> None:
        message = theirs(raw_input_contents=[bytes(8)])
        message.inputs.add(name="A", datatype="INT32", shape=[2])
        change(message)
        with pytest.raises(kind, match=text):
            read(message, Limits(max_inputs=3))

    broken(lambda m: m.ClearField("inputs"), "no inputs")
    broken(lambda m: m.inputs.add(name="A", datatype="INT32", shape=[2]), "A")
    broken(lambda m: m.raw_input_contents.append(b""), "raw")
    broken(lambda m: m.inputs[0].contents.int_contents.append(1), "contents")
    broken(lambda m: m.inputs[0].shape.append(-1), "out of range")
    broken(lambda m: setattr(m.inputs[0], "datatype", "INT33"), "datatype")
    broken(lambda m: setattr(m.inputs[0], "datatype", "FP64"), "size")
    broken(lambda m: m.parameters["x"].Clear(), "x")
    broken(lambda m: [m.inputs.add(name=f"B{n}") for n in range(3)], "more than 3", PayloadTooLarge)
    broken(lambda m: [m.outputs.add(name="Y") for _ in range(2)], "duplicate")

    def typed(datatype: str, field: str, values: list[Any], shape: list[int]) -> Any:
        def change(message: Any) -> None:
            message.ClearField("raw_input_contents")
            message.ClearField("inputs")
            tensor = message.inputs.add(name="A", datatype=datatype, shape=shape)
            getattr(tensor.contents, field).extend(values)

        return change

    broken(typed("FP16", "fp32_contents", [1.0], [1]), "raw")
    broken(typed("INT32", "int_contents", [1], [2]), "2 elements")
    broken(typed("INT32", "fp32_contents", [1.0], [1]), "int_contents")
    broken(typed("INT8", "int_contents", [128], [1]), "INT8")
    broken(typed("UINT8", "uint_contents", [256], [1]), "UINT8")


def test_an_answer_is_read_by_tritons_messages() -> None:
    outputs = (
        Tensor.from_numpy("Y", np.arange(6, dtype=np.float32).reshape(2, 3)),
        Tensor.from_numpy("T", np.array([b"a", b"bc"], dtype=object)),
    )
    message = theirs(raw_input_contents=[bytes(8)])
    message.inputs.add(name="A", datatype="INT32", shape=[2])
    response = InferResponse("m", "3", "7", {"said": "so", "n": -1, "f": 0.5, "b": True}, outputs)
    body = encode_response(response, read(message))
    answer = service_pb2.ModelInferResponse.FromString(encode_reply(Reply(body, "node")))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("Y", "FP32", [2, 3]), ("T", "BYTES", [2])]
    assert answer.raw_output_contents[0] == np.arange(6, dtype=np.float32).tobytes()
    assert answer.raw_output_contents[1] == b"\x01\x00\x00\x00a\x02\x00\x00\x00bc"
    assert answer.parameters["said"].string_param == "so"
    assert (answer.parameters["n"].int64_param, answer.parameters["b"].bool_param) == (-1, True)


def answered(values: list[float], request_id: str = "") -> WireBody:
    """In binary: FP32 Y and a BYTES that changes its size with the values."""
    texts = np.array([b"x" * int(v) for v in values], dtype=object)
    outputs = Tensor.from_numpy("Y", np.array(values, np.float32)), Tensor.from_numpy("T", texts)
    message = theirs(raw_input_contents=[bytes(8)])
    message.inputs.add(name="A", datatype="INT32", shape=[2])
    return encode_response(InferResponse("m", "1", request_id, {}, outputs), read(message))


@pytest.mark.parametrize("in_one_piece", [False, True], ids=["in pieces", "in one piece"])
def test_answers_whose_head_repeats_are_each_their_own(in_one_piece: bool) -> None:
    """From a model here an answer comes in pieces, from another node in one."""
    for values in ([1.0, 2.0], [2.0, 1.0], [0.0, 3.0], [3.0], [], [1.0, 2.0]):
        for request_id in ("", "7", "8"):
            body = answered(values, request_id)
            if in_one_piece:
                body = WireBody((body.joined(),), body.header_length)
            answer = service_pb2.ModelInferResponse.FromString(encode_reply(Reply(body, "node")))
            assert (answer.id, list(answer.outputs[0].shape)) == (request_id, [len(values)])
            assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == values
            assert answer.raw_output_contents[1] == b"".join(struct.pack("<I", int(v)) + b"x" * int(v) for v in values)
            part = service_pb2.ModelStreamInferResponse.FromString(encode_part(Reply(body, "node"), final=True))
            assert part.infer_response.parameters["triton_final_response"].bool_param
            del part.infer_response.parameters["triton_final_response"]
            assert part.infer_response == answer


def test_an_answer_in_json_has_raw_contents_too() -> None:
    text = b'{"model_name":"m","outputs":[{"name":"Y","datatype":"INT32","shape":[2],"data":[1,2]}]}'
    answer = service_pb2.ModelInferResponse.FromString(encode_reply(Reply(WireBody((text,), None), "node")))
    assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == [1, 2]


def test_an_answer_that_is_none_is_a_neighbours_fault() -> None:
    whole = answered([1.0, 2.0])
    encode_reply(Reply(whole, "node"))  # its head is known from now on
    for body in (
        WireBody((whole.joined()[:-1],), whole.header_length),
        WireBody((whole.joined() + b"x",), whole.header_length),
        WireBody((*whole.parts, b"x"), whole.header_length),
        WireBody((b"",), None),
    ):
        with pytest.raises(ProtocolError):
            encode_reply(Reply(body, "node"))


INFER = methods(INFERENCE)["ModelInfer"]
SMALL = Limits(max_json_bytes=1 << 20)


def test_only_raw_contents_may_be_large() -> None:
    """What is refused here is refused before it is parsed: parsed it takes many times the room."""
    large = theirs(raw_input_contents=[bytes(4 << 20)], id="7")
    large.inputs.add(name="A", datatype="UINT8", shape=[4 << 20])
    parsed = INFER.parse(large.SerializeToString(), SMALL)
    assert (parsed.id, len(parsed.raw_input_contents[0])) == ("7", 4 << 20)
    typed = theirs()
    typed.inputs.add(name="A", datatype="BOOL", shape=[2 << 20]).contents.bool_contents.extend([True] * (2 << 20))
    for message in (typed.SerializeToString(), theirs(id="x" * (2 << 20)).SerializeToString(), b"\x2a\0" * (1 << 20)):
        with pytest.raises(PayloadTooLarge, match="send large tensors raw"):
            INFER.parse(message, SMALL)


@pytest.mark.parametrize(
    "end",
    [b"\x3a", b"\x3a\xff", b"\x3a\x7f", b"\x3d\0", b"\x38" + b"\xff" * 11, b"\x3b", b"\x3c", b"\x3e", b"\x3f"],
    ids=["no length", "half a length", "too short", "no number", "endless", "group", "end", "6", "7"],
)
def test_a_large_message_that_is_none_is_refused(end: bytes) -> None:
    large = theirs(raw_input_contents=[bytes(2 << 20)]).SerializeToString()
    with pytest.raises(InvalidRequest):
        INFER.parse(large + end, SMALL)
    with pytest.raises(InvalidRequest):
        INFER.parse(end, SMALL)


@given(fields=st.lists(st.tuples(st.integers(1, 2**29 - 1), st.sampled_from([0, 1, 2, 5])), max_size=20))
def test_fields_that_nobody_knows_do_no_harm(fields: list[tuple[int, int]]) -> None:
    """A later protocol may have them; large messages are read as small ones are."""
    value = {0: b"\x96\x01", 1: bytes(8), 2: b"\x03abc", 5: bytes(4)}
    unknown = b"".join(varint((9 + n) % 2**29 << 3 | kind) + value[kind] for n, kind in fields if (9 + n) % 2**29 > 8)
    large = theirs(raw_input_contents=[bytes(2 << 20)]).SerializeToString()
    assert INFER.parse(unknown + large + unknown, SMALL).model_name == "m"


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def test_every_error_has_a_code_of_grpc() -> None:
    unknown = {error.code: code_of(error("x")) for error in BY_CODE.values() if error.status not in CODES}
    assert unknown == {}
    assert code_of(Overloaded("x")) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert trailers(Overloaded("x", retry_after_s=1.2)) == (("mesh-error", "overloaded"), ("retry-after", "2"))


def test_shared_memory_is_a_place_in_place_of_contents() -> None:
    def shared(**fields: Any) -> service_pb2.ModelInferRequest:
        message = theirs(**fields)
        for name in ("A", "B"):
            tensor = message.inputs.add(name=name, datatype="INT32", shape=[2])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 8
        return message

    here, there = read(shared(raw_input_contents=[bytes(8)])).inputs
    assert (here.nbytes, there.nbytes, there.parameters["shared_memory_region"]) == (8, 0, "r")
    with pytest.raises(InvalidRequest, match="2 raw contents for 1 inputs"):
        read(shared(raw_input_contents=[bytes(8)] * 2))
    both = shared()
    both.inputs[0].contents.int_contents.extend([1, 2])
    assert read(both).inputs[0].numpy().tolist() == [1, 2]
    both.inputs[1].contents.int_contents.extend([1, 2])
    with pytest.raises(InvalidRequest, match="beside shared memory"):
        read(both)
    no_size = shared(raw_input_contents=[bytes(8)])
    del no_size.inputs[1].parameters["shared_memory_byte_size"]
    with pytest.raises(InvalidRequest, match="shared_memory_byte_size"):
        read(no_size)


def test_parameters_of_every_kind_and_range() -> None:
    def said(field: str, value: Any) -> Any:
        message = theirs(raw_input_contents=[bytes(8)])
        message.inputs.add(name="A", datatype="INT32", shape=[2])
        setattr(message.parameters["p"], field, value)
        return read(message).parameters["p"]

    for field, value in (
        ("bool_param", False),
        ("int64_param", -(2**63)),
        ("uint64_param", 2**64 - 1),
        ("double_param", 0.5),
        ("string_param", "\u6a21"),
    ):
        assert said(field, value) == value
        assert type(said(field, value)) is type(value)
        written = service_pb2.ModelInferResponse()
        write_parameters(written.parameters, {"p": value})
        kind = written.parameters["p"].WhichOneof("parameter_choice")
        assert (kind, getattr(written.parameters["p"], kind)) == (field, value)
    with pytest.raises(InvalidRequest, match="finite"):
        said("double_param", float("inf"))
