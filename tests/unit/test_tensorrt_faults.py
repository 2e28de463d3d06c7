"""What fails in a TensorRT session, at every call: the class of the error, what is given back, what goes on working.

Not here: faults of capturing graphs (``test_tensorrt_graphs``), crashes and hangs (``test_tensorrt_processes``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from hardware.errors import (
    BackendUnavailable,
    DeviceFault,
    DeviceOutOfMemory,
    EngineNotBuilt,
    HardwareError,
    InvalidInput,
    RunFailed,
)
from hardware.fakes.cudart import FakeCudart
from hardware.fakes.trt_engine import ACTIVATION_BYTES
from tests.fake_plans import check_simple, open_on, simple

T = TypeVar("T")


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


SEQUENCE = (4, 4, 4, 8, 8, 64, 4, 4)


def _work(cuda: FakeCudart, data: bytes, *, graphs: bool) -> HardwareError | None:
    """Load, run, close; whatever fails, all must be given back, and no run may answer wrongly."""
    session, error = _failure(lambda: open_on(cuda, data, instances=2, cuda_graphs=graphs))
    if session is None:
        return error
    for turn, rows in enumerate(SEQUENCE):
        _, raised = _failure(lambda rows=rows, turn=turn: check_simple(session, rows, turn))  # type: ignore[misc]
        error = error or raised
        if isinstance(error, DeviceFault):
            assert type(raised) is DeviceFault, "it stays"
        elif raised is not None:
            check_simple(session, rows, turn)  # it passes
    session.close()
    return error


def _failure(work: Callable[[], T]) -> tuple[T | None, HardwareError | None]:
    """What came of it, and the error without the frames that would keep everything alive."""
    try:
        return work(), None
    except HardwareError as raised:
        raised.__context__ = raised.__cause__ = None
        return None, raised.with_traceback(None)


@pytest.mark.parametrize(("code", "kinds"), [(1, RunFailed), (2, DeviceOutOfMemory), (700, DeviceFault)])
@pytest.mark.parametrize(("graphs", "integrated"), [(False, False), (True, False), (True, True)])
def test_a_failure_at_any_call_leaves_nothing_behind(
    code: int, kinds: type[HardwareError], *, graphs: bool, integrated: bool
) -> None:
    data = simple((1, 4), (1, 64))
    environment = {"FAKE_CUDA_INTEGRATED": str(int(integrated))}
    clean = FakeCudart(environment)
    assert _work(clean, data, graphs=graphs) is None
    for position, name in enumerate(clean.calls, start=1):
        cuda = FakeCudart(environment)
        cuda.faults.on("*", position, code)
        error = _work(cuda, data, graphs=graphs)
        where = f"{name}, call {position}"
        assert cuda.live() == {}, where
        assert cuda.used_bytes == 0, where
        if error is not None and name == "deserialize_cuda_engine" and code == 1:
            assert type(error) is EngineNotBuilt, where
        elif error is not None and name in ("set_input_shape", "infer_shapes") and code != 700:
            assert type(error) is InvalidInput, where
        elif error is not None and code == 1:
            assert type(error) is RunFailed, where
        elif error is not None:
            assert isinstance(error, kinds), f"{where}: {error!r}"
        if code == 700 and not name.startswith(("cudaFree", "cudaStreamDestroy", "cudaEventDestroy", "cudaGraph")):
            assert error is not None, where


def test_a_sticky_fault_ends_the_session(cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_on(cuda, simple(), instances=2)
    check_simple(session, 4)
    cuda.faults.on("cudaEventSynchronize", 1, 719)
    for _ in range(3):
        with pytest.raises(DeviceFault, match="CUDA error 719"):
            check_simple(session, 4)
    calls = len(cuda.calls)
    with pytest.raises(DeviceFault):
        check_simple(session, 4)
    assert len(cuda.calls) == calls, "the device is not asked again"
    session.close()


def test_what_tensorrt_says_is_in_the_error(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple())
    cuda.faults.on("execute_async_v3", 1, 1)
    with pytest.raises(RunFailed, match=r"TensorRT did not start the run: execute_async_v3: .*\(1,"):
        check_simple(session, 4)
    cuda.faults.on("set_optimization_profile_async", 1, 2)
    with pytest.raises(DeviceOutOfMemory, match="out of memory"):
        check_simple(session, 4)
    check_simple(session, 4)
    session.close()


def test_plans_tensorrt_does_not_take(cuda: FakeCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, text in (
        (b"something else", "magicTag"),
        (simple().replace(b"[8, 7]", b"[9, 0]"), "incompatible device"),
    ):
        with pytest.raises(EngineNotBuilt, match=text):
            open_on(cuda, data)
    data = simple()
    monkeypatch.setenv("FAKE_TRT_VERSION", "11.4")
    with pytest.raises(EngineNotBuilt, match="Version tag does not match"):
        open_on(cuda, data)
    assert cuda.live() == {}


def test_no_device_and_too_little_memory() -> None:
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        open_on(FakeCudart({"FAKE_CUDA_DEVICES": "0"}), simple())
    small = FakeCudart({"FAKE_CUDA_MEMORY": str(2 * ACTIVATION_BYTES)})
    with pytest.raises(DeviceOutOfMemory, match="no execution context"):
        open_on(small, simple(), instances=3)
    assert small.live() == {}
    assert small.used_bytes == 0
