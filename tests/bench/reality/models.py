"""The models of the testbed, their requests and the repository of a box.

A model takes as many bytes as the simulated one and answers its first values plus one, so that every reply can be
judged; what it costs is the paced device's affair (``hardware.fakes.paced``). Not here: the times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from tests.bench.offload import scenario
from tests.bench.offload.scenario import Profile

HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Model:
    """``x`` FP32 [n, width] to ``y`` FP32 [n, answers]: the first ``answers`` values of each row, plus one."""

    name: str
    width: int
    answers: int

    @classmethod
    def like(cls, simulated: scenario.Model) -> Model:
        return cls(simulated.name, simulated.nbytes // 4, simulated.reply_bytes // 4)

    @cached_property
    def x(self) -> npt.NDArray[np.float32]:
        return np.random.default_rng(7).random((1, self.width), np.float32)

    @cached_property
    def answer(self) -> bytes:
        """The bytes of the right ``y``."""
        return np.ascontiguousarray(self.x[:, : self.answers] + np.float32(1)).tobytes()

    def body(self, timeout_ms: float) -> tuple[int, bytes]:
        """Length of the JSON part, and the whole body; the caller allows ``timeout_ms``."""
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, self.width],
            "parameters": {"binary_data_size": 4 * self.width},
        }
        parameters = {"binary_data_output": True, "timeout": round(timeout_ms * 1e3)}
        head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        return len(head), head + self.x.tobytes()

    def request(self, address: str, timeout_ms: float) -> bytes:
        """The whole HTTP request."""
        length, body = self.body(timeout_ms)
        head = (
            f"POST /v2/models/{self.name}/infer HTTP/1.1\r\nHost: {address}\r\n"
            f"{HEADER}: {length}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def onnx(self) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", self.width))
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", self.answers))
        weights = [
            helper.make_tensor("from", TensorProto.INT64, (1,), [0]),
            helper.make_tensor("to", TensorProto.INT64, (1,), [self.answers]),
            helper.make_tensor("axis", TensorProto.INT64, (1,), [1]),
            helper.make_tensor("one", TensorProto.FLOAT, (1,), [1.0]),
        ]
        nodes = [
            helper.make_node("Slice", ["x", "from", "to", "axis"], ["part"]),
            helper.make_node("Add", ["part", "one"], ["y"]),
        ]
        graph = helper.make_graph(nodes, self.name, [x], [y], weights)
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(built.SerializeToString())


def write_repository(folder: Path, models: dict[Model, Profile]) -> Path:
    """The repository of a box: each model with the most rows that the box runs together."""
    for model, (_, _, most) in models.items():
        place = folder / model.name / "1"
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes(model.onnx())
        (folder / model.name / "model.toml").write_text(f"[batching]\nmax_rows = {most}\n")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def profiles_json(models: dict[Model, Profile]) -> str:
    """For the paced device."""
    return json.dumps({model.name: [a, c] for model, (a, c, _) in models.items()})
