"""Plans of the fake TensorRT around tiny ONNX models, and a fake device to run them on.

Not here: building plans from models as TensorRT does (``hardware.fakes.trt_build``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hardware.backend import LoadOptions, RawTensor
from hardware.fakes import cudart, trt
from hardware.fakes.trt_types import chosen_version
from hardware.tensorrt_session import TensorRtSession, open_plan
from tests import onnx_models

Entry = tuple[str, str, Sequence[int]]
Ranges = Mapping[str, Sequence[Sequence[int]]]


def plan(model: bytes, inputs: Sequence[Entry], outputs: Sequence[Entry], *profiles: Ranges, **more: Any) -> bytes:
    """A plan for version and device of the environment; each profile gives (min, opt, max) by input."""
    head = {"version": chosen_version(), "cc": [8, 7], "precision": "fp32", "profiles": profiles}
    document = json.dumps({**head, "inputs": inputs, "outputs": outputs, **more}).encode()
    return b"FAKEPLAN" + struct.pack("<I", len(document)) + document + model


def simple(*batches: tuple[int, int]) -> bytes:
    """Triton's ``simple`` with a profile for each (smallest, largest) batch, 1 to 8 by default."""
    names = ("INPUT0", "INPUT1"), ("OUTPUT0", "OUTPUT1")
    inputs, outputs = ([(name, "INT32", (-1, 16)) for name in side] for side in names)
    profiles = [{name: [(low, 16), (high, 16), (high, 16)] for name in names[0]} for low, high in batches or [(1, 8)]]
    return plan(onnx_models.simple(), inputs, outputs, *profiles)


def simple_inputs(rows: int, seed: int = 0) -> tuple[list[RawTensor], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs of :func:`simple` with so many rows, and the two arrays in them."""
    random = np.random.default_rng(seed)
    first, second = (random.integers(-1000, 1000, (rows, 16), dtype=np.int32) for _ in range(2))
    tensors = [RawTensor(n, "INT32", a.shape, a.tobytes()) for n, a in (("INPUT0", first), ("INPUT1", second))]
    return tensors, first, second


def check_simple(session: TensorRtSession, rows: int, seed: int = 0) -> None:
    """Run :func:`simple` and compare every value."""
    tensors, first, second = simple_inputs(rows, seed)
    total, difference = session.run(tensors, [])
    np.testing.assert_array_equal(array(total), first + second)
    np.testing.assert_array_equal(array(difference), first - second)


def array(tensor: RawTensor) -> np.ndarray[Any, Any]:
    dtype = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4"}[tensor.datatype]
    return np.frombuffer(tensor.whole, dtype).reshape(tensor.shape)


def open_on(cuda: cudart.FakeCudart, data: bytes, **options: Any) -> TensorRtSession:
    return open_plan(trt.module(), cudart.install(cuda), data, LoadOptions(backend="tensorrt", **options))
