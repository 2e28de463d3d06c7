"""Requests that are wrong in one random way: hypothesis strategies for all doors, for ``simple`` of ``malformed``.

Each starts from a good request and breaks it so that nobody may answer it. Not here: named cases (``malformed``), who
sends them (``tests.system.test_storm``).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests.malformed import ROW_BYTES, binary_input, good_json, joined, json_input

Draw = st.DrawFn


@dataclass(frozen=True)
class Broken:
    """One request as body and headers; ``what`` is wrong with it."""

    what: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    model: str = "simple"
    version: str = ""


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(),
    st.lists(st.none(), max_size=3), st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
names = st.text(min_size=1, max_size=40).filter(lambda name: name not in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"))
not_texts = junk.filter(lambda value: not isinstance(value, str))
not_lists = junk.filter(lambda value: not isinstance(value, list))
wrong_datatypes = st.sampled_from(["INT64", "INT8", "FP32", "BOOL", "BYTES", "BF16", "UINT32"]) | st.text().filter(
    lambda text: text != "INT32"
)
wrong_shapes = st.lists(st.integers(-(2**64), 2**64) | st.integers(-2, 40), max_size=10).filter(
    lambda shape: shape != [1, 16]
)
bad_parameters = st.one_of(
    st.fixed_dictionaries({"timeout": junk.filter(lambda v: v is not None and not _unsigned(v))}),
    st.fixed_dictionaries({"priority": junk.filter(lambda v: v is not None and not _unsigned(v))}),
    st.fixed_dictionaries({"mesh_stay": st.text(min_size=1).filter(lambda v: v not in ("node", "site", "region"))}),
    st.fixed_dictionaries({"mesh_tier": st.integers()}),
    st.fixed_dictionaries({"binary_data_output": st.integers() | st.text()}),
    st.fixed_dictionaries({"x": st.lists(st.integers(), min_size=1, max_size=2)}),
)


def _unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _json(what: str, head: Any) -> Broken:
    return Broken(what, json.dumps(head).encode())


def _two(first: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": [first, json_input("INPUT1")]}


def _without(name: str) -> dict[str, Any]:
    return {key: value for key, value in json_input().items() if key != name}


@st.composite
def broken_json(draw: Draw) -> Broken:
    """A JSON body whose values are wrong."""
    broken: dict[str, Callable[[], Any]] = {
        "inputs": lambda: {"inputs": draw(not_lists)},
        "input": lambda: {"inputs": [draw(junk), json_input("INPUT1")]},
        "no inputs": lambda: {"inputs": []} | draw(st.dictionaries(names, junk, max_size=2)),
        "name": lambda: _two(json_input(draw(names))),
        "name type": lambda: _two(json_input() | {"name": draw(not_texts)}),
        "one input": lambda: {"inputs": [json_input(draw(st.sampled_from(["INPUT0", "INPUT1"])))]},
        "twice": lambda: {"inputs": [json_input()] * draw(st.integers(2, 5))},
        "datatype": lambda: _two(json_input(datatype=draw(wrong_datatypes))),
        "datatype type": lambda: _two(json_input(datatype=draw(not_texts))),
        "shape": lambda: _two(json_input(shape=draw(wrong_shapes))),
        "shape type": lambda: _two(json_input(shape=draw(not_lists))),
        "data": lambda: _two(json_input(data=draw(not_lists))),
        "element": lambda: _two(json_input(data=[[1] * 15 + [draw(st.text() | st.none() | st.just(2**40))]])),
        "count": lambda: _two(json_input(data=[1] * draw(st.integers(0, 40).filter(lambda n: n != 16)))),
        "missing field": lambda: _two(_without(draw(st.sampled_from(["shape", "datatype", "data"])))),
        "parameters": lambda: good_json(parameters=draw(bad_parameters)),
        "parameters type": lambda: good_json(parameters=draw(st.lists(st.none(), min_size=1) | st.text(min_size=1))),
        "output": lambda: good_json(outputs=[{"name": draw(names)}]),
        "output type": lambda: good_json(outputs=[draw(not_texts | st.text())]),
        "id": lambda: good_json(id=draw(not_texts.filter(lambda v: v is not None))),
    }  # fmt: skip
    what = draw(st.sampled_from(sorted(broken)))
    return _json(what, broken[what]())


@st.composite
def broken_text(draw: Draw) -> Broken:
    """A body that is no JSON at all: cut, with a byte changed into what JSON has nowhere, or noise."""
    good = json.dumps(good_json()).encode()
    at = draw(st.integers(0, len(good) - 1))
    nested = b'{"inputs":' + b"[" * draw(st.integers(1_000, 30_000))
    which = {"cut": good[:at], "a byte": good[:at] + b"\x00" + good[at:], "behind": good + b"]", "deep": nested}
    what = draw(st.sampled_from(sorted(which)))
    return Broken(what, which[what])


@st.composite
def broken_binary(draw: Draw) -> Broken:
    """A JSON head with binary tensors behind it that do not agree."""
    tensors = bytes(2 * ROW_BYTES)
    head = {"inputs": [binary_input(), binary_input("INPUT1")]}
    what = draw(st.sampled_from(["length", "short", "long", "size", "shape", "datatype", "both", "garbage head"]))
    length = None
    if what == "length":
        whole = len(json.dumps(head))
        length = draw(st.integers(-10, 400).filter(lambda n: n != whole) | st.integers(2**31, 2**80))
    elif what == "short":
        tensors = tensors[: draw(st.integers(0, 2 * ROW_BYTES - 1))]
    elif what == "long":
        tensors += bytes(draw(st.integers(1, 300)))
    elif what == "size":
        size = draw(st.integers(-(2**65), 2**65).filter(lambda n: n != ROW_BYTES) | st.text() | st.booleans())
        head["inputs"][0]["parameters"]["binary_data_size"] = size
    elif what == "shape":
        head["inputs"][0]["shape"] = draw(wrong_shapes)
    elif what == "datatype":
        head["inputs"][0]["datatype"] = draw(wrong_datatypes)
    elif what == "both":
        head["inputs"][0]["data"] = [1] * draw(st.integers(1, 20))
    else:
        body, headers = joined(draw(st.binary(min_size=1, max_size=200).filter(_no_object)), tensors)
        return Broken(what, body, headers)
    body, headers = joined(head, tensors, length)
    return Broken(what, body, headers)


def _no_object(text: bytes) -> bool:
    return not text.lstrip().startswith(b"{")


@st.composite
def broken_where(draw: Draw) -> Broken:
    """A good body for a model or version that is not there."""
    body = json.dumps(good_json()).encode()
    model = draw(
        st.text("abcxyz0189_-.", min_size=1, max_size=60).filter(lambda name: name not in ("simple", ".", ".."))
    )
    if draw(st.booleans()):
        return Broken("model", body, model=model)
    return Broken("version", body, version=draw(st.integers(2, 10**30).map(str)))


@st.composite
def broken_encoding(draw: Draw) -> Broken:
    """A compressed body that is none, or is cut."""
    good = zlib.compress(json.dumps(good_json()).encode())
    body = draw(st.binary(max_size=200) | st.integers(0, len(good) - 1).map(lambda n: good[:n]))
    return Broken("encoding", body, {"Content-Encoding": draw(st.sampled_from(["gzip", "deflate", "br", "zstd"]))})


anywhere = st.one_of(broken_json(), broken_text(), broken_binary(), broken_where())
"""For HTTP and the bus."""
over_http = st.one_of(anywhere, broken_encoding())
as_json = st.one_of(broken_json(), broken_text(), broken_where())
"""For MQTT, which has no headers."""


@st.composite
def broken_message(draw: Draw) -> Broken:
    """A message of gRPC that asks for nothing that can be answered."""
    broken: dict[str, Callable[[Any], None]] = {
        "model": lambda m: _set(m, model_name=draw(names)),
        "version": lambda m: _set(m, model_version=draw(st.text(min_size=1).filter(lambda v: v != "1"))),
        "no inputs": lambda m: m.ClearField("inputs"),
        "one input": lambda m: m.inputs.pop() and None,
        "twice": lambda m: _set(m.inputs[1], name="INPUT0"),
        "name": lambda m: _set(m.inputs[0], name=draw(names)),
        "datatype": lambda m: _set(m.inputs[0], datatype=draw(wrong_datatypes)),
        "shape": lambda m: _shape(m.inputs[0], draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=10))),
        "raw count": lambda m: m.raw_input_contents.append(draw(st.binary(max_size=70))),
        "raw size": lambda m: m.raw_input_contents.__setitem__(0, draw(st.binary(max_size=63))),
        "both": lambda m: m.inputs[0].contents.int_contents.append(1),
        "typed": lambda m: _typed(m, draw(st.integers(0, 40).filter(lambda n: n != 16))),
        "wrong field": lambda m: _wrong_field(m),
        "no value": lambda m: m.parameters["x"].Clear(),
        "timeout": lambda m: _set(m.parameters["timeout"], string_param=draw(st.text())),
        "sequence": lambda m: _set(m.parameters["mesh_stay"], int64_param=draw(st.integers(0, 9))),
        "output": lambda m: m.outputs.add(name=draw(names)) and None,
        "outputs twice": lambda m: m.outputs.extend([m.outputs.add(name="OUTPUT0")]),
    }  # fmt: skip
    what = draw(st.sampled_from([*sorted(broken), "garbage", "cut"]))
    message = good_message()
    if what == "garbage":
        return Broken(what, draw(st.binary(min_size=1, max_size=200)))
    if what == "cut":
        whole = message.SerializeToString()
        return Broken(what, whole[: draw(st.integers(0, len(whole) - 1))])
    broken[what](message)
    return Broken(what, message.SerializeToString())


def good_message() -> Any:
    message = service_pb2.ModelInferRequest(model_name="simple", raw_input_contents=[bytes(ROW_BYTES)] * 2)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
    return message


def _set(message: Any, **fields: Any) -> None:
    for name, value in fields.items():
        setattr(message, name, value)


def _shape(tensor: Any, shape: list[int]) -> None:
    del tensor.shape[:]
    tensor.shape.extend(shape if shape != [1, 16] else [1, 17])


def _typed(message: Any, count: int) -> None:
    message.ClearField("raw_input_contents")
    for tensor in message.inputs:
        tensor.contents.int_contents.extend([1] * count)


def _wrong_field(message: Any) -> None:
    message.ClearField("raw_input_contents")
    for tensor in message.inputs:
        tensor.contents.fp32_contents.extend([1.0] * 16)
