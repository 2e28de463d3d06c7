"""Tiny ONNX models whose inference costs next to nothing, so that a benchmark measures everything around it.

Each model knows its request in OIP binary form and how to judge a reply, written here without the mesh's own codec:
the benchmark checks it too. Not here: real models (``mesh.demo``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Floats = npt.NDArray[np.float32]
HEADER = "Inference-Header-Content-Length"
HEADER_LENGTH = re.compile(rb"\r\ninference-header-content-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
OPSET = 17
IR_VERSION = 8
"""Both old enough for every runtime that the mesh supports."""


@dataclass(frozen=True)
class Model:
    """A model ``x -> y`` of FP32 tensors; ``shape`` is that of one request, its first dimension the free batch."""

    name: str
    shape: tuple[int, ...]
    op: str
    """ONNX operator: "Add" (of 1, so that a reply of the input is wrong) or "GlobalAveragePool"."""

    @property
    def nbytes(self) -> int:
        """Bytes of the input tensor."""
        return int(np.prod(self.shape)) * 4

    @property
    def path(self) -> str:
        return f"/v2/models/{self.name}/infer"

    @cached_property
    def tensor(self) -> Floats:
        return np.random.default_rng(7).random(self.shape, dtype=np.float32)

    @cached_property
    def expected(self) -> Floats:
        answer = self.tensor + np.float32(1) if self.op == "Add" else self.tensor.mean((2, 3), keepdims=True)
        return np.asarray(answer, np.float32)

    @cached_property
    def header(self) -> bytes:
        """The JSON part of the request."""
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": list(self.shape),
            "parameters": {"binary_data_size": self.nbytes},
        }
        return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    @cached_property
    def body(self) -> bytes:
        return self.header + self.tensor.tobytes()

    @cached_property
    def reply(self) -> bytes:
        """A right reply as compact as the protocol allows: an echo answers as many bytes."""
        tensor = {
            "name": "y",
            "datatype": "FP32",
            "shape": list(self.expected.shape),
            "parameters": {"binary_data_size": self.expected.nbytes},
        }
        said = {"model_name": self.name, "model_version": "1", "outputs": [tensor]}
        return json.dumps(said, separators=(",", ":")).encode() + self.expected.tobytes()

    def http(self, path: str, address: str) -> bytes:
        """The whole HTTP request, head and body."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\n"
            f"{HEADER}: {len(self.header)}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body

    def judge(self, header_length: int, body: bytes) -> str:
        """What is wrong with a reply's body, empty if nothing is."""
        try:
            head = json.loads(body[:header_length])
            (output,) = head["outputs"]
            said = (output["name"], output["datatype"], tuple(output["shape"]))
            got = np.frombuffer(body, np.float32, offset=header_length)
        except (ValueError, KeyError, TypeError) as error:
            return f"not an inference reply ({error}): {body[:300]!r}"
        if said != ("y", "FP32", self.expected.shape):
            return f"{said} instead of y, FP32, {self.expected.shape}"
        return self.judge_numbers(got)

    def judge_numbers(self, got: Floats) -> str:
        """What is wrong with an answer, in whatever shape, empty if nothing is."""
        flat, expected = got.ravel(), self.expected.ravel()
        if flat.size != expected.size or not np.allclose(flat, expected, rtol=1e-4):
            return f"{flat.size} numbers {flat[:4]}... instead of {expected.size}, {expected[:4]}..."
        return ""

    def onnx(self) -> onnx.ModelProto:
        out = ("N", *self.expected.shape[1:])
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", *self.shape[1:]))
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
        one: list[Any] = [helper.make_tensor("one", TensorProto.FLOAT, (1,), [1.0])] if self.op == "Add" else []
        node = helper.make_node(self.op, ["x", *(tensor.name for tensor in one)], ["y"])
        graph = helper.make_graph([node], self.name, [x], [y], one)
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(built, full_check=True)
        return built


ADD = Model("add", (1, 16), "Add")
"""64 bytes in, 64 out."""
WIDE = Model("wide", (1, 1024), "Add")
"""4,096 bytes in, as many out."""
POOL = Model("pool", (1, 3, 224, 224), "GlobalAveragePool")
"""602,112 bytes in (an image of 224 x 224 as floats), 12 out."""


@dataclass(frozen=True)
class Answer:
    """Verifier of raw replies over HTTP (``loadgen.Verify``); ``node`` is who must have run it, empty for anybody."""

    model: Model
    node: str = ""

    def __call__(self, head: bytes, body: bytes) -> str:
        if self.node and f"\r\nmesh-node: {self.node}\r\n".encode() not in head.lower():
            return f"not answered by {self.node}: {head!r}"
        length = HEADER_LENGTH.search(head)
        return self.model.judge(int(length[1]), body) if length else f"no header length in {head!r}"


@dataclass(frozen=True)
class ParsedAnswer:
    """Judge of replies whose headers a library has parsed (``clients.Judge``)."""

    model: Model

    def __call__(self, headers: Mapping[str, str], body: bytes) -> str:
        length = headers.get(HEADER.lower(), "")
        return self.model.judge(int(length), body) if length.isdigit() else f"no header length in {dict(headers)}"


@dataclass(frozen=True)
class Bytes:
    """Verifier of an echo's replies, raw or parsed: so many bytes."""

    count: int

    def __call__(self, head: object, body: bytes) -> str:
        return "" if len(body) == self.count else f"{len(body)} bytes instead of {self.count}"


def write_repository(folder: Path, *models: Model) -> Path:
    """Lay the models out as a repository, ``<folder>/<model>/1/model.onnx``."""
    for model in models:
        place = folder / model.name / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(model.onnx().SerializeToString())
    return folder
