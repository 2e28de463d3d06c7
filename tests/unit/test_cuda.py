"""The checked CUDA runtime over the fake one, and the real bindings where they are installed."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hardware import cuda
from hardware.cuda import STICKY, Cuda, device_facts
from hardware.errors import BackendUnavailable, DeviceFault, DeviceOutOfMemory, HardwareError, RunFailed
from hardware.fakes.cudart import FakeCudart
from hardware.fakes.faults import Misuse


@pytest.fixture
def fake() -> FakeCudart:
    return FakeCudart()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, RunFailed),
        (2, DeviceOutOfMemory),
        (35, BackendUnavailable),
        (100, BackendUnavailable),
        (209, BackendUnavailable),
        (400, RunFailed),
        *[(code, DeviceFault) for code in sorted(STICKY)],
        (720, RunFailed),
        (901, RunFailed),
        (999, RunFailed),
        (12345, RunFailed),
    ],
)
def test_a_code_becomes_the_right_error(fake: FakeCudart, code: int, kind: type[HardwareError]) -> None:
    fake.faults.on("cudaMalloc", 1, code)
    with pytest.raises(HardwareError, match=rf"cudaMalloc: .*CUDA error {code}") as raised:
        Cuda(fake).device_memory(256)
    assert type(raised.value) is kind
    assert fake.live() == {}


def test_a_sticky_error_stays_and_another_is_forgotten(fake: FakeCudart) -> None:
    device = Cuda(fake)
    fake.faults.on("cudaMalloc", 1, 2)
    with pytest.raises(DeviceOutOfMemory):
        device.device_memory(256)
    assert int(fake.cudaGetLastError()[0]) == 0, "the next library to ask would take it for its own"
    device.device_memory(256).close()
    fake.faults.on("cudaStreamSynchronize", 1, 700)
    with pytest.raises(DeviceFault), device.stream() as stream:
        stream.synchronize()
    for call in (device.use, device.free_bytes, device.event, lambda: device.pinned_memory(1)):
        with pytest.raises(DeviceFault):
            call()


def test_facts(fake: FakeCudart) -> None:
    fake.integrated = True
    facts = device_facts(0, fake)
    assert facts == cuda.DeviceFacts("Fake GPU", (8, 7), 16, True, 13020, 13000, 8 * 1024**3)
    assert "cudaMemGetInfo" not in fake.calls, "facts must not make a context"


@pytest.mark.parametrize(("devices", "index"), [(0, 0), (1, 1), (2, -1)])
def test_a_device_that_is_not_there(devices: int, index: int) -> None:
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver|there is no GPU"):
        device_facts(index, FakeCudart({"FAKE_CUDA_DEVICES": str(devices)}))


def test_a_function_the_library_lacks_says_so() -> None:
    def missing() -> None:
        raise RuntimeError('Function "cudaGetDeviceCount" not found')

    with pytest.raises(BackendUnavailable, match="cudaGetDeviceCount is not in this CUDA runtime"):
        Cuda(SimpleNamespace(cudaGetDeviceCount=missing)).facts()


def test_memory_is_given_back_once(fake: FakeCudart) -> None:
    device = Cuda(fake)
    made = [device.device_memory(100), device.pinned_memory(100), device.mapped_memory(100)]
    assert fake.live() == {"memory": 3}
    assert made[2].device_address
    for memory in made * 2:
        memory.close()
    assert fake.live() == {}


def test_mapped_memory_without_a_device_address_is_given_back(fake: FakeCudart) -> None:
    fake.faults.on("cudaHostGetDevicePointer", 1, 1)
    with pytest.raises(RunFailed):
        Cuda(fake).mapped_memory(100)
    assert fake.live() == {}


def test_what_cannot_be_given_back_is_logged(fake: FakeCudart, caplog: pytest.LogCaptureFixture) -> None:
    memory = Cuda(fake).device_memory(100)
    fake.faults.on("cudaFree", 1, 999)
    memory.close()
    assert "not given back: cudaFree" in caplog.text


@pytest.mark.parametrize("failing", ["cudaStreamEndCapture", "cudaGraphInstantiate", "cudaStreamBeginCapture"])
def test_a_capture_that_fails_leaves_nothing_and_the_stream_usable(fake: FakeCudart, failing: str) -> None:
    device = Cuda(fake)
    done: list[int] = []
    with device.stream() as stream:
        fake.faults.on(failing, 1, 901)
        with pytest.raises(RunFailed):
            device.capture(stream, lambda: fake.enqueue(stream.handle, lambda: done.append(1)))
        stream.synchronize()
        assert fake.live() == {"streams": 1}
    assert fake.live() == {}
    assert done == []


def test_an_error_while_capturing_ends_the_capture(fake: FakeCudart) -> None:
    device = Cuda(fake)

    def enqueue() -> None:
        raise RunFailed("no")

    with device.stream() as stream:
        with pytest.raises(RunFailed, match="no"):
            device.capture(stream, enqueue)
        assert not fake.is_capturing(stream.handle)
    assert fake.live() == {}


def test_a_graph_runs_as_often_as_it_is_launched(fake: FakeCudart) -> None:
    device = Cuda(fake)
    done: list[int] = []
    with device.stream() as stream:
        with device.capture(stream, lambda: fake.enqueue(stream.handle, lambda: done.append(1))) as graph:
            assert done == []
            for _ in range(3):
                graph.launch(stream)
            stream.synchronize()
        assert done == [1, 1, 1]
    assert fake.live() == {}


def test_work_is_not_done_before_somebody_waits(fake: FakeCudart) -> None:
    """The fake must catch a missing wait: this is what shows that it does."""
    device = Cuda(fake)
    with device.pinned_memory(256) as host, device.device_memory(256) as memory, device.stream() as stream:
        fake.at(host.address, 4, kernel=False)[:] = [1, 2, 3, 4]
        with device.event() as event:
            device.copy_to_device(memory, host, 4, stream)
            fake.at(host.address, 4, kernel=False)[:] = 9  # too early: the copy reads this
            event.record(stream)
            assert list(fake.at(memory.address, 4, kernel=True)) != [9, 9, 9, 9]
            event.synchronize()
        assert list(fake.at(memory.address, 4, kernel=True)) == [9, 9, 9, 9]


def test_the_fake_catches_misuse(fake: FakeCudart) -> None:
    device = Cuda(fake)
    host, memory, stream = device.pinned_memory(256), device.device_memory(256), device.stream()
    with pytest.raises(Misuse, match="257 bytes"):
        device.copy_to_device(memory, host, 257, stream)
    with pytest.raises(Misuse, match="other direction"):
        fake.cudaMemcpyAsync(memory.address, host.address, 4, fake.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream.raw)
    with pytest.raises(Misuse, match="no device address"):
        fake.at(host.address, 4, kernel=True)
    device.copy_to_device(memory, host, 4, stream)
    memory.close()
    with pytest.raises(Misuse, match="after it was freed"):
        stream.synchronize()
    with pytest.raises(Misuse, match="freed twice"):
        fake.cudaFree(memory.address)
    with pytest.raises(Misuse, match="nobody's"):
        fake.at(1, 1, kernel=False)
    assert fake.live() == {"memory": 1, "streams": 1}


def test_the_older_name_of_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    older = ModuleType("cuda.cudart")
    for name in [name for name in sys.modules if name.split(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    package: Any = ModuleType("cuda")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "cuda", package)
    with pytest.raises(BackendUnavailable, match=r"ModuleNotFoundError.*install inference-mesh"):
        cuda.load_cudart()
    monkeypatch.setitem(sys.modules, "cuda.cudart", older)
    assert cuda.load_cudart() is older


def test_the_real_bindings_without_a_driver() -> None:
    """Their answers have the shape the fake's have."""
    real = pytest.importorskip("cuda.bindings.runtime")
    if int(real.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU")
    with pytest.raises(BackendUnavailable, match=r"cudaGetDeviceCount: .* \(CUDA error (35|100)\): "):
        device_facts(0)
