"""Engines of the fake TensorRT: what a plan says of its tensors, and its ONNX model run by ONNX Runtime on the CPU.

Not here: reading plans (``trt_run``), the execution context (``trt_context``).
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np

from hardware import onnx_backend
from hardware.backend import ITEM_BYTES, LoadOptions, RawTensor
from hardware.fakes import cudart
from hardware.fakes.trt_types import DataType, Severity

ACTIVATION_BYTES = 1024 * 1024


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class TensorFormat(Enum):
    LINEAR = 0
    CHW4 = 3


class ExecutionContextAllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


OIP: dict[str, str] = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT8": "INT8",
    "INT32": "INT32",
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "BF16": "BF16",
    "INT64": "INT64",
}
_FROM_OIP = {oip: name for name, oip in OIP.items()}


class Dims:
    """A shape; -1 dimensions stand for an error, and their length cannot be taken."""

    MAX_DIMS = 8

    def __init__(self, shape: Any = None) -> None:
        self._dims = [] if shape is None else [int(dim) for dim in shape]
        self._known = shape is not None

    def __len__(self) -> int:
        return len(self._dims) if self._known else -1

    def __getitem__(self, index: int) -> int:
        return self._dims[index]

    def __iter__(self) -> Iterator[int]:
        if not self._known:
            raise ValueError("__len__() should return >= 0")
        return iter(self._dims)


class IOutputAllocator:
    def __init__(self) -> None:
        self._initialised = True


class _Tensor:
    """One entry of the head: name, datatype by TensorRT's or the protocol's name, shape."""

    def __init__(self, entry: list[Any], mode: TensorIOMode) -> None:
        self.name, dtype, shape = entry
        self.dtype = DataType[_FROM_OIP.get(dtype, dtype)]
        self.shape = tuple(shape)
        self.mode = mode

    @property
    def datatype(self) -> str:
        return OIP[self.dtype.name]

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[self.datatype]


def report(logger: Any, text: str) -> None:
    logger.log(Severity.ERROR, text)


class ICudaEngine:
    """``_context_type`` is set where both are known (``trt_run``)."""

    _context_type: Any = None

    def __init__(self, logger: Any, head: dict[str, Any], model: bytes) -> None:
        self._logger = logger
        self._tensors: dict[str, _Tensor] = {e[0]: _Tensor(e, TensorIOMode.INPUT) for e in head["inputs"]}
        self._tensors |= {e[0]: _Tensor(e, TensorIOMode.OUTPUT) for e in head["outputs"]}
        self._profiles: list[dict[str, Any]] = head["profiles"]
        self._shape_inputs = frozenset(head.get("shape_inputs", ()))
        self._model = model
        self._session: Any = None
        self._lock = threading.Lock()
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self._profiles))

    @property
    def device_memory_size_v2(self) -> int:
        return ACTIVATION_BYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._tensors[name].mode if name in self._tensors else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._tensors[name].dtype

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._tensors[name].shape) if name in self._tensors else Dims()

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat.LINEAR if name in self._tensors else TensorFormat.CHW4

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._shape_inputs else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self._shape_inputs

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        limits = self._limits(name, profile_index)
        tensor = self._tensors.get(name)
        if limits is None or tensor is None or tensor.mode is TensorIOMode.OUTPUT:
            return [Dims(), Dims(), Dims()]
        return [Dims(shape) for shape in limits]

    def get_tensor_profile_values(self, profile_index: int, name: str) -> list[list[int]]:
        if not isinstance(profile_index, int) or not isinstance(name, str):
            raise TypeError("get_tensor_profile_values(): incompatible function arguments")  # as pybind11 says
        if name not in self._shape_inputs:
            raise RuntimeError("Binding index does not correspond to an input shape tensor.")
        return [list(values) for values in self._profiles[profile_index].get(f"{name} values", [])]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Any:
        cuda = cudart.current()
        own = strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        if fails(self._logger, "create_execution_context"):
            return None
        if own and not cuda.take(ACTIVATION_BYTES):
            return report(self._logger, f"Requested amount of GPU memory ({ACTIVATION_BYTES} bytes) not available")
        context = self._context_type(self, own)
        if own:
            weakref.finalize(context, cuda.put_back, ACTIVATION_BYTES)
        return context

    # Used by the context.

    def _limits(self, name: str, profile: int) -> list[list[int]] | None:
        """Smallest, best and largest shape in a profile."""
        tensor = self._tensors.get(name)
        if tensor is None or not 0 <= profile < self.num_optimization_profiles:
            return None
        static = [list(tensor.shape)] * 3
        return self._profiles[profile].get(name, static) if self._profiles else static

    def _execute(self, values: dict[str, bytes], shapes: dict[str, tuple[int, ...]]) -> dict[str, RawTensor]:
        """Run the model; raises ``HardwareError``."""
        with self._lock:
            if self._session is None:
                self._session = _open(self._model)
        inputs = [RawTensor(n, self._tensors[n].datatype, shapes[n], data) for n, data in values.items()]
        return {tensor.name: tensor for tensor in self._session.run(inputs, [])}

    def _infer(self, shapes: dict[str, tuple[int, ...]], values: dict[str, bytes]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs, found by running on zeros and on ones: what differs depends on data and is -1."""
        key = (tuple(sorted(shapes.items())), tuple(sorted(values.items())))
        if key not in self._shapes:
            filled = []
            for fill in (0, 1):
                given = {name: _filled(self._tensors[name], shape, fill) for name, shape in shapes.items()}
                filled.append(self._execute({**given, **values}, shapes))
            zeros, ones = filled
            self._shapes[key] = {
                name: tuple(a if a == b else -1 for a, b in zip(zeros[name].shape, ones[name].shape, strict=True))
                for name in zeros
            }
        return self._shapes[key]


def fails(logger: Any, name: str) -> int:
    """Whether a call has to fail, and with which of CUDA's codes; TensorRT's words for it are in the logger then."""
    code = cudart.current().enter(name)
    if code:
        words = "out of memory" if code == cudart.cudaError_t.cudaErrorMemoryAllocation else "on command"
        report(logger, f"{name}: Error Code 1: Cuda Runtime ({code}, {words})")
    return code


def _filled(tensor: _Tensor, shape: tuple[int, ...], value: int) -> bytes:
    dtype = {"FP32": "<f4", "FP16": "<f2"}.get(tensor.datatype)
    if dtype is not None:
        return np.full(shape, value, dtype).tobytes()
    if tensor.datatype == "BF16":
        return np.full(shape, 0x3F80 * value, "<u2").tobytes()
    return np.full(shape, value, f"<i{ITEM_BYTES[tensor.datatype]}").tobytes()


def _open(model: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        with open(path, "wb") as file:
            file.write(model)
        return onnx_backend.open_session(path, LoadOptions())
