"""Malformed inference requests as plain data: for the codec, and for every door in front of it.

They are sent to a mesh that serves one model, ``simple`` version 1: INT32 inputs INPUT0 and INPUT1 of shape [-1,16],
INT32 outputs OUTPUT0 and OUTPUT1 of the same shape. Nothing here is more than a few kilobytes but one head that is
over the limit by a byte. Not here: who checks them.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

PATH = "/v2/models/simple/infer"
HEADER = "Inference-Header-Content-Length"
ROW = [[1] * 16]
ROW_BYTES = 64


@dataclass(frozen=True)
class Malformed:
    """``text`` is part of the error's text. ``codec``: the codec alone must refuse it, without model or HTTP."""

    name: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    path: str | None = None
    """None for ``PATH``."""
    status: frozenset[int] = frozenset({400})
    text: str = ""
    codec: bool = True


def json_input(name: str = "INPUT0", **fields: Any) -> dict[str, Any]:
    """A good JSON input; a field that is ``...`` is left out."""
    tensor = {"name": name, "shape": [1, 16], "datatype": "INT32", "data": ROW} | fields
    return {key: value for key, value in tensor.items() if value is not ...}


def binary_input(name: str = "INPUT0", size: Any = ROW_BYTES, **fields: Any) -> dict[str, Any]:
    return json_input(name, **({"data": ..., "parameters": {"binary_data_size": size}} | fields))


def good_json(**fields: Any) -> dict[str, Any]:
    return {"inputs": [json_input(), json_input("INPUT1")]} | fields


def joined(head: Any, tensors: bytes = b"", header_length: int | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a binary request; ``header_length`` where the header lies."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return text + tensors, {HEADER: str(len(text) if header_length is None else header_length)}


def _text(name: str, body: bytes, text: str = "unable to parse the request", status: int = 400) -> Malformed:
    return Malformed(name, body, status=frozenset({status}), text=text)


def _json(name: str, head: Any, text: str, status: int = 400, *, codec: bool = True) -> Malformed:
    return Malformed(name, json.dumps(head).encode(), status=frozenset({status}), text=text, codec=codec)


def _first(case: str, text: str, status: int = 400, /, *, codec: bool = True, **fields: Any) -> Malformed:
    """Good but for fields of the first input."""
    head = {"inputs": [json_input(**fields), json_input("INPUT1")]}
    return _json(case, head, text, status, codec=codec)


def _binary(
    name: str,
    head: Any,
    text: str,
    tensors: bytes = bytes(2 * ROW_BYTES),
    status: int = 400,
    *,
    header_length: int | None = None,
    codec: bool = True,
) -> Malformed:
    body, headers = joined(head, tensors, header_length)
    return Malformed(name, body, headers, status=frozenset({status}), text=text, codec=codec)


def _header(name: str, value: str, text: str = HEADER, status: int = 400, *, codec: bool = True) -> Malformed:
    """Good but for the value of the header-length header."""
    body, _ = joined({"inputs": [binary_input(), binary_input("INPUT1")]}, bytes(2 * ROW_BYTES))
    return Malformed(name, body, {HEADER: value}, status=frozenset({status}), text=text, codec=codec)


def _at(name: str, path: str, text: str = "Request for unknown model", status: int = 404) -> Malformed:
    body = json.dumps(good_json()).encode()
    return Malformed(name, body, path=path, status=frozenset({status}), text=text, codec=False)


def _bytes_input(name: str, data: bytes, text: str, shape: tuple[int, ...] = (2,), status: int = 400) -> Malformed:
    head = {"inputs": [binary_input("TEXT", len(data), datatype="BYTES", shape=shape)]}
    return _binary(name, head, text, data, status)


BINARY = {"inputs": [binary_input(), binary_input("INPUT1")]}
ONE = json_input()
LONE_TEXT = struct.pack("<I", 3) + b"abc"

NOT_JSON = [
    _text("empty body", b""),
    _text("white space", b"  \n"),
    _text("not json", b"inputs=1"),
    _text("truncated json", json.dumps(good_json()).encode()[:-2]),
    _text("text after json", json.dumps(good_json()).encode() + b"{}"),
    _text("byte order mark", b"\xef\xbb\xbf" + json.dumps(good_json()).encode()),
    _text("utf-16", json.dumps(good_json()).encode("utf-16")),
    _text("not utf-8", json.dumps(good_json()).encode().replace(b"INPUT0", b"INP\xffT0")),
    _text("null", b"null"),
    _text("array", b"[]"),
    _text("number", b"1"),
    _text("string", b'"inputs"'),
    _text("deep array", b'{"inputs":[],"x":' + b"[" * 20_000, "nested too deeply"),
    _text("deep object", b'{"inputs":[],"x":' + b'{"a":' * 20_000, "nested too deeply"),
    _text("lone surrogate", json.dumps(good_json()).encode().replace(b"INPUT0", b"\\ud800INPUT0")),
    _text("python literals", str(good_json()).encode()),
]

WRONG_HEAD = [
    _json("empty object", {}, "missing required field `inputs`"),
    _json("no inputs", {"inputs": []}, "no inputs"),
    _json("inputs null", {"inputs": None}, "$.inputs"),
    _json("inputs object", {"inputs": ONE}, "$.inputs"),
    _json("input a string", {"inputs": ["INPUT0"]}, "$.inputs[0]"),
    _json("id a number", good_json(id=7), "$.id"),
    _json("id null", good_json(id=None), "$.id"),
    _json("parameters a list", good_json(parameters=[]), "$.parameters"),
    _json("parameter an object", good_json(parameters={"a": {}}), "$.parameters"),
    _json("parameter null", good_json(parameters={"a": None}), "$.parameters"),
    _json("parameter beyond 64 bits", good_json(parameters={"a": 2**64}), "'a'"),
    _json("timeout negative", good_json(parameters={"timeout": -1}), "'timeout'"),
    _json("timeout a string", good_json(parameters={"timeout": "1"}), "'timeout'"),
    _json("timeout a bool", good_json(parameters={"timeout": True}), "'timeout'"),
    _json("timeout a fraction", good_json(parameters={"timeout": 1.5}), "'timeout'"),
    _json("priority negative", good_json(parameters={"priority": -1}), "'priority'"),
    _json("binary_data_output a number", good_json(parameters={"binary_data_output": 1}), "'binary_data_output'"),
    _json("outputs an object", good_json(outputs={"name": "OUTPUT0"}), "$.outputs"),
    _json("output a string", good_json(outputs=["OUTPUT0"]), "$.outputs[0]"),
    _json("output without name", good_json(outputs=[{}]), "`name`"),
    _json("duplicate output", good_json(outputs=[{"name": "OUTPUT0"}] * 2), "'OUTPUT0'"),
    _json(
        "binary_data a string",
        good_json(outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": "true"}}]),
        "'binary_data'",
    ),
    _json(
        "classification",
        good_json(outputs=[{"name": "OUTPUT0", "parameters": {"classification": -3}}]),
        "classification",
        codec=False,
    ),
    _json(
        "output in shared memory",
        good_json(outputs=[{"name": "OUTPUT0", "parameters": {"shared_memory_region": "r"}}]),
        "shared_memory_byte_size",
        400,
    ),
    _json("too many inputs", {"inputs": [json_input(f"I{n}") for n in range(300)]}, "more than", 413),
    _json("duplicate input", {"inputs": [ONE, ONE]}, "duplicate input 'INPUT0'"),
]

WRONG_INPUT = [
    _first("no name", "`name`", name=...),
    _first("name a number", "$.inputs[0].name", name=0),
    _first("name empty", "empty name", name=""),
    _first("no datatype", "`datatype`", datatype=...),
    _first("datatype unknown", "invalid datatype 'INT31' for input 'INPUT0'", datatype="INT31"),
    _first("datatype in lower case", "invalid datatype 'int32' for input 'INPUT0'", datatype="int32"),
    _first("datatype a number", "$.inputs[0].datatype", datatype=4),
    _first("no shape", "`shape`", shape=...),
    _first("shape a number", "$.inputs[0].shape", shape=16),
    _first("shape nested", "input 'INPUT0' must be an integer", shape=[[1, 16]]),
    _first("dimension negative", "dimension 0 of input 'INPUT0' is out of range", shape=[-1, 16]),
    _first("dimension a float", "input 'INPUT0' must be an integer, got float", shape=[1.0, 16]),
    _first("dimension a bool", "input 'INPUT0' must be an integer, got bool", shape=[True, 16]),
    _first("dimension a string", "input 'INPUT0' must be an integer, got str", shape=["1", 16]),
    _first("dimension null", "input 'INPUT0' must be an integer", shape=[None, 16]),
    _first("dimension beyond 64 bits", "out of range", shape=[2**64, 16]),
    _first("dimension of 1000 digits", "out of range", shape=[10**1000, 16]),
    _first("shape overflows 64 bits", "too large", shape=[2**32, 2**32], data=[]),
    _first("shape overflows to zero bytes", "too large", shape=[2**62, 4], data=[]),
    _first("zero times too much", "too large", shape=[0, 2**40, 2**40], data=[]),
    _first("a billion elements", "Expected 1000000000, got 16", shape=[10**9], data=[1] * 16),
    _first("rank nine", "over the limit of 8", shape=[1] * 8 + [16]),
    _first("neither data nor size", "neither 'data' nor", data=...),
    _first("data null", "'data' of input 'INPUT0'", data=None),
    _first("data a string", "'data' of input 'INPUT0'", data="AAAA"),
    _first("data an object", "'data' of input 'INPUT0'", data={}),
    _first("data a number", "'data' of input 'INPUT0'", data=1),
    _first("data too short", "'data' of input 'INPUT0'. Expected 16, got 15", data=[1] * 15),
    _first("data too long", "'data' of input 'INPUT0'. Expected 16, got 17", data=[1] * 17),
    _first("nested row too short", "'data' of input 'INPUT0'. Expected 16", data=[[1] * 15]),
    _first("nested rows too many", "'data' of input 'INPUT0'. Expected 1 ", data=[[1] * 16] * 2),
    _first("nested transposed", "'data' of input 'INPUT0'. Expected 1 ", data=[[1]] * 16),
    _first("nested ragged", "Expected 8 elements on axis 1, got 9", shape=[2, 8], data=[[1] * 9, [1] * 7]),
    _first("nested too deep", "'data' of input 'INPUT0'", data=[[[1] * 16]]),
    _first("nested and flat", "'data' of input 'INPUT0'", data=[1] * 15 + [[1]]),
    _first("fractions for integers", "'data' of input 'INPUT0'", data=[1.5] * 16),
    _first("whole floats for integers", "'data' of input 'INPUT0'", data=[1.0] * 16),
    _first("bools for integers", "'data' of input 'INPUT0'", data=[True] * 16),
    _first("strings for integers", "'data' of input 'INPUT0'", data=["1"] * 16),
    _first("nulls for integers", "'data' of input 'INPUT0'", data=[None] * 16),
    _first("above INT32", "element 15 in 'data' of input 'INPUT0' is out of range", data=[1] * 15 + [2**31]),
    _first("below INT32", "element 0 in 'data' of input 'INPUT0' is out of range", data=[-(2**31) - 1] + [1] * 15),
    _first("above 64 bits", "element 0 in 'data' of input 'INPUT0' is out of range", data=[2**64] * 16),
    _first("negative UINT64", "out of range", datatype="UINT64", data=[-1] * 16),
    _first("above UINT64", "out of range", datatype="UINT64", data=[2**64] * 16),
    _first("numbers for BOOL", "'data' of input 'INPUT0'", datatype="BOOL", data=[1] * 16),
    _first("numbers for BYTES", "'data' of input 'INPUT0'", datatype="BYTES", data=[1] * 16),
    _first("above FP32", "out of range of FP32", datatype="FP32", data=[1e39] * 16),
    _first("above FP16", "out of range of FP16", datatype="FP16", data=[70_000] * 16),
    _first("above BF16", "out of range of BF16", datatype="BF16", data=[3.4e38] * 16),
    _text(
        "above FP64", json.dumps(good_json()).replace("[[1,", "[[1e999,").replace("INT32", "FP64").encode(), "INPUT0"
    ),
    _first("NaN", "JSON has no NaN", datatype="FP32", data=[float("nan")] * 16),
    _first("Infinity", "JSON has no NaN", datatype="FP32", data=[float("-inf")] * 16),
    _first("parameters null", "$.inputs[0].parameters", parameters=None),
    _first("in shared memory", "shared_memory_byte_size", data=..., parameters={"shared_memory_region": "r"}),
    _first("size without header", HEADER, data=..., parameters={"binary_data_size": 64}),
    _first("data and size", "both 'data' and", parameters={"binary_data_size": 64}),
]

WRONG_BINARY = [
    _header("header length zero", "0", "one input", codec=False),
    _header("header length beyond the body", "100000"),
    _header("header length too long", "300", "unable to parse the request"),
    _header("header length too short", "10", "unable to parse the request"),
    _header("header length negative", "-1", codec=False),
    _header("header length empty", "", codec=False),
    _header("header length a word", "many", codec=False),
    _header("header length a fraction", "1.5", codec=False),
    _header("header length hexadecimal", "0x10", codec=False),
    _header("header length with a sign", "+10", codec=False),
    _header("header length of 40 digits", "9" * 40),
    _text("binary without header", joined(BINARY, bytes(2 * ROW_BYTES))[0]),
    _binary("head over the limit", b" " * (1 << 20) + b"{}", "over the limit", status=413),
    _binary("no tensors", BINARY, "input 'INPUT0' is incomplete. Expected 64 bytes, got 0", b""),
    _binary("second tensor missing", BINARY, "input 'INPUT1' is incomplete", bytes(ROW_BYTES)),
    _binary("last byte missing", BINARY, "input 'INPUT1' is incomplete", bytes(2 * ROW_BYTES - 1)),
    _binary("trailing bytes", BINARY, "additional input data", bytes(2 * ROW_BYTES + 1)),
    _binary("tensors nobody names", good_json(), "additional input data"),
    _binary("size too small", {"inputs": [binary_input(size=60)]}, "Expected 64, got 60", bytes(60)),
    _binary("size too large", {"inputs": [binary_input(size=68)]}, "Expected 64, got 68", bytes(68)),
    _binary("size negative", {"inputs": [binary_input(size=-64)]}, "must be a count of bytes"),
    _binary("size a float", {"inputs": [binary_input(size=64.0)]}, "must be a count of bytes"),
    _binary("size a bool", {"inputs": [binary_input(size=True)]}, "must be a count of bytes"),
    _binary("size a string", {"inputs": [binary_input(size="64")]}, "must be a count of bytes"),
    _binary("size null", {"inputs": [binary_input(size=None)]}, "$.inputs[0].parameters"),
    _binary("size of a gigabyte", {"inputs": [binary_input(size=10**9, shape=[250_000_000])]}, "is incomplete"),
    _binary("size beyond 64 bits", {"inputs": [binary_input(size=2**70)]}, "out of the range"),
    _binary("binary data and data", {"inputs": [binary_input(data=ROW)]}, "both 'data' and", bytes(64)),
    _bytes_input("string length missing", b"\x01", "too few", (1,)),
    _bytes_input("string overruns", struct.pack("<I", 9) + b"abc", "incomplete string at element 0", (1,)),
    _bytes_input("string length of 4 GiB", b"\xff" * 4 + b"abc", "incomplete string at element 0", (1,)),
    _bytes_input("a string too few", LONE_TEXT, "too few"),
    _bytes_input("a string too many", LONE_TEXT * 3, "after the last"),
    _bytes_input("half a length", LONE_TEXT + b"\0\0", "got 1"),
    _bytes_input("a billion strings", LONE_TEXT, "over the limit", (10**9,), 413),
]

WRONG_FOR_MODEL = [
    _at("unknown model", "/v2/models/nobody/infer"),
    _at("unknown version", "/v2/models/simple/versions/99/infer"),
    _at("version a word", "/v2/models/simple/versions/latest/infer", "failed to get model version", 400),
    _at("model with a slash", "/v2/models/a%2Fb/infer", ""),
    _json("input unknown", {"inputs": [ONE, json_input("INPUT9")]}, "INPUT", codec=False),
    _json("input in lower case", {"inputs": [json_input("input0"), json_input("INPUT1")]}, "input0", codec=False),
    _json("input missing", {"inputs": [ONE]}, "INPUT1", codec=False),
    _json("input too many", {"inputs": [*good_json()["inputs"], json_input("INPUT2")]}, "INPUT2", codec=False),
    _first("other datatype", "INPUT0", datatype="FP32", codec=False),
    _first("other width", "INPUT0", shape=[1, 15], data=[1] * 15, codec=False),
    _first("other rank", "INPUT0", shape=[16], data=[1] * 16, codec=False),
    _first("rank zero", "INPUT0", shape=[], data=[1], codec=False),
    _json("output unknown", good_json(outputs=[{"name": "OUTPUT9"}]), "OUTPUT9", codec=False),
]

MALFORMED = [*NOT_JSON, *WRONG_HEAD, *WRONG_INPUT, *WRONG_BINARY, *WRONG_FOR_MODEL]
