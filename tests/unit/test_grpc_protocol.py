"""The messages of gRPC: compiled from what is written, beside other people's, and to requests of ours and back.

Not here: calls (``tests.integration.test_grpc``).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.grpc_codec import CONTENTS, read_request
from mesh.grpc_protocol import HEALTH, INFERENCE, REFLECTION, message_class, methods
from mesh.grpc_reply import encode_reply
from mesh.hop import Reply
from mesh.oip.datatypes import DATATYPES
from mesh.oip.request import decode_request, encode_request
from mesh.oip.response import InferResponse, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import Limits

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
