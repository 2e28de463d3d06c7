"""The network and the ONNX parser of the stand-in for TensorRT: what a model's file says of itself, and no more.

Types inside are not inferred: every layer is taken to give what the model gives first. Not here: building
(``trt_build``).
"""

from __future__ import annotations

import os
from typing import Any

from hardware.backend import TensorInfo
from hardware.fakes.trt_types import ONNX_TYPES, ErrorCode, ILogger, Severity
from hardware.onnx_graph import OnnxGraph, read_graph
from hardware.protobuf import Malformed


class ITensor:
    def __init__(self, info: TensorInfo) -> None:
        self.name = info.name
        self.dtype = ONNX_TYPES[info.datatype]
        self.shape = info.shape
        self.is_shape_tensor = False


class ILayer:
    num_outputs = 1

    def __init__(self, name: str, output: ITensor) -> None:
        self.name = name
        self._output = output

    def get_output(self, index: int) -> ITensor | None:
        return self._output if index == 0 else None


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self._model = b""
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def _fill(self, graph: OnnxGraph, model: bytes) -> None:
        self._model = model
        self._inputs = [ITensor(info) for info in graph.inputs]
        self._outputs = [ITensor(info) for info in graph.outputs]
        self._layers = [ILayer(operator.name, self._outputs[0]) for operator in graph.operators]


class ParserError:
    def __init__(self, code: ErrorCode, desc: str, operator: str = "", name: str = "", node: int = -1) -> None:
        self._values = (code, desc, operator, name, node)

    def code(self) -> ErrorCode:
        return self._values[0]

    def desc(self) -> str:
        return self._values[1]

    def node_operator(self) -> str:
        return self._values[2]

    def node_name(self) -> str:
        return self._values[3]

    def node(self) -> int:
        return self._values[4]


class OnnxParser:
    """Refuses the operators that ``FAKE_TRT_REFUSE_OP`` names, apart by commas."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._logger = logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse(self, model: Any, path: str | None = None) -> bool:
        data = bytes(model)
        try:
            graph = read_graph(memoryview(data))
        except Malformed:
            graph = OnnxGraph((), (), ())
        if not graph.outputs:
            self._fail(ErrorCode.MODEL_DESERIALIZE_FAILED, "Failed to parse the ONNX model.")
            return False
        for info in (*graph.inputs, *graph.outputs):
            if info.datatype not in ONNX_TYPES:
                self._fail(ErrorCode.UNSUPPORTED_NODE, "Failed to convert ONNX date type to TensorRT data type.")
        refused = os.environ.get("FAKE_TRT_REFUSE_OP", "").split(",")
        for number, operator in enumerate(graph.operators):
            if operator.op_type in refused:
                self._fail(ErrorCode.INVALID_NODE, "Plugin not found", operator.op_type, operator.name, number)
        if not self._errors:
            self._network._fill(graph, data)
        return not self._errors

    def _fail(self, code: ErrorCode, desc: str, operator: str = "", name: str = "", node: int = -1) -> None:
        self._errors.append(ParserError(code, desc, operator, name, node))
        self._logger.log(Severity.ERROR, f"In node {node} with name: {name} and operator: {operator}: {desc}")
