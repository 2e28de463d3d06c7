"""CUDA graphs of the TensorRT session: when they are captured, captured again, given up, and that answers stay right.

The fake raises if a graph runs after its context was told something else. Not here: plain runs
(``test_tensorrt_session``).
"""

from __future__ import annotations

from collections import Counter

import pytest

from hardware.fakes.cudart import FakeCudart
from tests.fake_plans import check_simple, open_on, simple


@pytest.fixture
def cuda() -> FakeCudart:
    return FakeCudart()


def test_shapes_seen_again_are_replayed(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple(), cuda_graphs=True)
    for turn in range(10):
        check_simple(session, 4, turn)
    calls = Counter(cuda.calls)
    assert calls["cudaStreamBeginCapture"] == 1
    assert calls["cudaGraphLaunch"] == 8
    session.close()
    assert cuda.live() == {}
    assert cuda.used_bytes == 0


def test_a_buffer_that_grew_means_another_capture(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple((1, 64)), cuda_graphs=True)
    for rows, captures in ((4, 1), (64, 2), (4, 3)):  # 64 rows move the buffers, then 4 must be captured again
        for turn in range(4):
            check_simple(session, rows, turn)
        assert Counter(cuda.calls)["cudaStreamBeginCapture"] == captures
    session.close()
    assert cuda.live() == {}


def test_only_so_many_are_kept(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple((1, 16)), cuda_graphs=True)
    check_simple(session, 16)
    for rows in range(1, 13):
        for turn in range(3):
            check_simple(session, rows, turn)
    assert cuda.live()["executables"] == 8
    check_simple(session, 1)
    session.close()
    assert cuda.live() == {}


@pytest.mark.parametrize(
    "name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "create_execution_context"]
)
def test_a_capture_that_fails_is_never_tried_again_and_never_a_wrong_answer(
    cuda: FakeCudart, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_on(cuda, simple(), cuda_graphs=True)
    cuda.faults.on(name, 1, 901)
    for turn in range(6):
        check_simple(session, 4, turn)
    assert "no CUDA graph for input shapes ((4, 16), (4, 16))" in caplog.text
    assert "cudaGraphLaunch" not in cuda.calls
    for turn in range(3):
        check_simple(session, 5, turn)
    assert "cudaGraphLaunch" in cuda.calls, "other shapes are not to suffer"
    session.close()
    assert cuda.live() == {}


def test_a_run_that_is_refused_while_capturing(cuda: FakeCudart) -> None:
    session = open_on(cuda, simple(), cuda_graphs=True)
    cuda.faults.on("execute_async_v3", 3, 1)  # the plain run, the warm run, the capture
    for turn in range(6):
        check_simple(session, 4, turn)
    assert "cudaGraphLaunch" not in cuda.calls
    session.close()
    assert cuda.live() == {}
