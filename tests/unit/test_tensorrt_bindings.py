"""The session against TensorRT-RTX's own bindings, as far as they go without a GPU: nothing runs, the calls are real.

Not here: builds with them (``test_engine_plan``), runs (``test_tensorrt_session``).
"""

from __future__ import annotations

from typing import Any

import pytest

from hardware.backend import LoadOptions
from hardware.cuda import Cuda
from hardware.errors import DeviceOutOfMemory, EngineNotBuilt
from hardware.fakes.cudart import FakeCudart
from hardware.tensorrt_buffers import Place, TensorBuffer
from hardware.tensorrt_context import output_allocator
from hardware.tensorrt_engine import DATATYPES, dims
from hardware.tensorrt_session import open_plan


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


def test_a_plan_that_is_none(rtx: Any, cuda: FakeCudart) -> None:
    with pytest.raises(EngineNotBuilt, match="TensorRT does not take the engine: "):
        open_plan(rtx, cuda, b"no plan at all", LoadOptions(backend="tensorrt"))


def test_an_output_allocator(rtx: Any, cuda: FakeCudart) -> None:
    buffer = TensorBuffer(Cuda(cuda), Place.DEVICE)
    allocator = output_allocator(rtx, buffer)
    assert isinstance(allocator, rtx.IOutputAllocator)
    assert allocator.reallocate_output_async("Y", 0, 1000, 256, 1) == buffer.address
    allocator.notify_shape("Y", rtx.Dims([1, 250]))
    assert allocator.shape == (1, 250)
    cuda.faults.on("cudaMalloc", 1, 2)
    assert allocator.reallocate_output_async("Y", 0, 10_000, 256, 1) == 0
    assert isinstance(allocator.error, DeviceOutOfMemory)
    buffer.close()


def test_dims_and_datatypes(rtx: Any) -> None:
    assert dims(rtx.Dims([2, 3])) == (2, 3)
    assert set(DATATYPES) <= set(rtx.DataType.__members__)
