"""The half of a fake TensorRT that runs engines: reads a plan, and refuses it as TensorRT does.

A plan is ``FAKEPLAN``, the length of a JSON document, that document, and the model. Beside what ``trt_build`` writes
it may have ``shape_inputs``, the inputs whose values decide shapes; ``"<name> values"`` in a profile are their
limits. Not here: engines (``trt_engine``), the execution context (``trt_context``), building (``trt_build``).
"""

from __future__ import annotations

import json
import struct
from typing import Any

from hardware.fakes import cudart
from hardware.fakes.trt_context import IExecutionContext
from hardware.fakes.trt_engine import (
    Dims,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    IOutputAllocator,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    fails,
    report,
)

MAGIC = b"FAKEPLAN"

ICudaEngine._context_type = IExecutionContext


class Runtime:
    """``_version`` is set by :func:`names`."""

    _version = ""

    def __init__(self, logger: Any) -> None:
        if not cudart.current().devices:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        cuda = cudart.current()
        plan = memoryview(serialized_engine).cast("B")
        if fails(self.logger, "deserialize_cuda_engine"):
            return None
        if bytes(plan[: len(MAGIC)]) != MAGIC or len(plan) < 12:
            return self._refuse("Serialization assertion magicTagRead == kMAGIC_TAG failed")
        (length,) = struct.unpack_from("<I", plan, len(MAGIC))
        head = json.loads(bytes(plan[12 : 12 + length]))
        if head["version"] != self._version:
            return self._refuse("Version tag does not match")
        if tuple(head["cc"]) != cuda.compute_capability:
            return self._refuse("The engine plan file is generated on an incompatible device")
        return ICudaEngine(self.logger, head, bytes(plan[12 + length :]))

    def _refuse(self, why: str) -> None:
        report(self.logger, f"IRuntime::deserializeCudaEngine: Error Code 4: {why}")


def names(version: str) -> dict[str, Any]:
    """The public names of this half, as ``version`` has them."""
    return {
        "Dims": Dims,
        "ExecutionContextAllocationStrategy": ExecutionContextAllocationStrategy,
        "ICudaEngine": ICudaEngine,
        "IExecutionContext": IExecutionContext,
        "IOutputAllocator": IOutputAllocator,
        "Runtime": type("Runtime", (Runtime,), {"_version": version}),
        "TensorFormat": TensorFormat,
        "TensorIOMode": TensorIOMode,
        "TensorLocation": TensorLocation,
    }
