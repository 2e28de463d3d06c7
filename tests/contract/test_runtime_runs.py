"""What every runtime promises of single runs: pieces, instances that overlap, abandoned runs, unloading behind them."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import numpy as np
import psutil
import pytest

from hardware.backend import Buffer, RawTensor
from hardware.errors import InvalidInput, NotLoaded, RunFailed, TensorTooLarge
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from tests import onnx_models
from tests.contract.tensors import ENDLESS, floats, int64, load, pair

Results = list[RawTensor]


@pytest.fixture(params=["worker", "inline"])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    runtimes: dict[str, AbstractAsyncContextManager[Runtime]] = {
        "worker": WorkerRuntime(WorkerOptions(slots=4, slot_bytes=256 * 1024, close_grace_s=0.5)),
        "inline": InlineRuntime(inline_ms=0),  # a loop's duration depends on its values, which that guess leaves out
    }
    async with runtimes[request.param] as runtime:
        yield runtime


def rounds(n: int) -> list[RawTensor]:
    return [int64("N", n)]


async def count_of(run: asyncio.Future[Results]) -> int:
    (count,) = await asyncio.wait_for(run, 60)
    return int(np.frombuffer(count.whole, dtype=np.int64)[0])


async def is_running(runtime: Runtime) -> None:
    """Return once the process of the runtime has worked for a while: what was to begin has begun."""
    process = psutil.Process(runtime.pid)
    before = process.cpu_times().user

    async def works() -> None:
        while process.cpu_times().user - before < 0.1:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(works(), 60)


def slots_in_use(runtime: Runtime) -> int:
    return len(runtime._calls.slots) if isinstance(runtime, WorkerRuntime) else len(runtime._interrupts)  # type: ignore[attr-defined]


@pytest.mark.parametrize("instances", [1, 2])
async def test_pieces_are_the_same_as_the_whole(runtime: Runtime, tmp_path: Path, instances: int) -> None:
    await load(runtime, tmp_path, onnx_models.free_dims(), instances=instances)
    values = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    whole = values.tobytes()
    for cuts in ([48], [4, 4], [0, 0, 240], [1, 7, 100], list(range(0, 240, 13))):
        ends = [0, *sorted(cuts), len(whole)]
        pieces: tuple[Buffer, ...] = tuple(whole[a:b] for a, b in itertools.pairwise(ends))
        mixed: tuple[Buffer, ...] = (bytearray(pieces[0]), memoryview(pieces[1]), *pieces[2:])
        data: tuple[Buffer, ...]
        for data in (pieces, mixed, (whole,)):
            (result,) = await runtime.run("m", [RawTensor("X", "FP32", (5, 3, 4), data)], [])
            np.testing.assert_array_equal(floats(result), values * 2)
            assert not isinstance(result.data, tuple)


async def test_pieces_of_arrays_are_bytes_too(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.free_dims())
    rows = tuple(np.full((2, 3), n, dtype=np.float32).data for n in range(4))
    (result,) = await runtime.run("m", [RawTensor("X", "FP32", (4, 2, 3), rows)], [])
    np.testing.assert_array_equal(floats(result)[:, 0, 0], [0, 2, 4, 6])


async def test_strings_may_be_cut_anywhere(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.identity("BYTES"))
    data = b"".join(struct.pack("<I", len(s)) + s for s in (b"one", "grüß".encode(), b""))
    for cut in range(len(data) + 1):
        (result,) = await runtime.run("m", [RawTensor("INPUT", "BYTES", (3,), (data[:cut], data[cut:]))], [])
        assert bytes(result.whole) == data


async def test_pieces_of_a_wrong_size_are_refused(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.add())
    for pieces in ((bytes(32), bytes(31)), (bytes(64), b"x"), (), (b"",)):
        with pytest.raises(InvalidInput):
            await runtime.run("m", [RawTensor("X", "FP32", (1, 16), pieces)], [])
    (result,) = await runtime.run("m", [RawTensor("X", "FP32", (1, 16), (bytes(32), bytes(32)))], [])
    assert not floats(result).any()


async def test_pieces_that_do_not_fit_a_slot_together_are_refused(tmp_path: Path) -> None:
    async with WorkerRuntime(WorkerOptions(slots=1, slot_bytes=4096)) as runtime:
        await load(runtime, tmp_path, onnx_models.identity("UINT8"))
        with pytest.raises(TensorTooLarge, match="ends at byte 4097"):
            await runtime.run("m", [RawTensor("INPUT", "UINT8", (4097,), (bytes(4000), bytes(97)))], [])
        (result,) = await runtime.run("m", [RawTensor("INPUT", "UINT8", (4096,), (bytes(4000), bytes(96)))], [])
        assert result.shape == (4096,)


async def test_instances_overlap_and_no_more_of_them_than_asked(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.loop(), instances=3)
    endless = [runtime.run("m", rounds(ENDLESS), []) for _ in range(2)]
    for n in (5, 6, 7):  # beside two that never end
        assert await count_of(runtime.run("m", rounds(n), [])) == n
    endless.append(runtime.run("m", rounds(ENDLESS), []))
    waits = runtime.run("m", rounds(8), [])
    await is_running(runtime)
    assert not waits.done()
    runtime.abandon(endless[0])
    assert await count_of(waits) == 8
    for run in endless:
        runtime.abandon(run)
        with pytest.raises(RunFailed):
            await asyncio.wait_for(run, 60)


async def test_a_model_with_instances_does_not_hold_up_its_neighbours(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.simple(), "single")
    await load(runtime, tmp_path, onnx_models.loop(), "several", instances=2)
    endless = [runtime.run("several", rounds(ENDLESS), []) for _ in range(2)]
    for n in range(20):
        (total,) = await asyncio.wait_for(runtime.run("single", pair(n), ["OUTPUT0"]), 60)
        assert np.frombuffer(total.whole, dtype=np.int32)[0] == n + 1
    for run in endless:
        runtime.abandon(run)
    await runtime.unload("several")
    await load(runtime, tmp_path, onnx_models.loop(), "again")
    assert await count_of(runtime.run("again", rounds(3), [])) == 3
    assert await asyncio.gather(*endless, return_exceptions=True)


@pytest.mark.parametrize("instances", [1, 2])
async def test_unloading_waits_for_runs_and_for_those_given_up(
    runtime: Runtime, tmp_path: Path, instances: int
) -> None:
    await load(runtime, tmp_path, onnx_models.loop(), instances=instances)
    runs = [runtime.run("m", rounds(20_000 + n), []) for n in range(8)]
    runs[0].cancel()
    unloading = asyncio.ensure_future(runtime.unload("m"))
    assert [await count_of(run) for run in runs[1:]] == [20_000 + n for n in range(1, 8)]
    await unloading
    assert slots_in_use(runtime) == 0
    with pytest.raises(NotLoaded):
        await runtime.run("m", rounds(1), [])
    await load(runtime, tmp_path, onnx_models.loop())
    assert await count_of(runtime.run("m", rounds(4), [])) == 4


@pytest.mark.parametrize("instances", [1, 2])
async def test_an_abandoned_run_ends_and_the_next_is_right(runtime: Runtime, tmp_path: Path, instances: int) -> None:
    await load(runtime, tmp_path, onnx_models.loop(), instances=instances)
    for n in range(3):
        run = runtime.run("m", rounds(ENDLESS), [])
        await is_running(runtime)
        runtime.abandon(run)
        follower = runtime.run("m", rounds(n), [])
        with pytest.raises(RunFailed):
            await asyncio.wait_for(run, 60)
        runtime.abandon(run)  # too late for anything
        assert await count_of(follower) == n
    assert slots_in_use(runtime) == 0


async def test_a_run_that_waits_is_never_begun(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.loop())
    first = runtime.run("m", rounds(ENDLESS), [])
    waiting = [runtime.run("m", rounds(ENDLESS), []) for _ in range(8)]  # some in slots, some not
    for run in waiting:
        runtime.abandon(run)
    last = runtime.run("m", rounds(9), [])
    runtime.abandon(first)
    assert await count_of(last) == 9
    for run in waiting:
        with pytest.raises(RunFailed, match="before it began"):
            await run
    with pytest.raises(RunFailed):
        await first


async def test_a_cancelled_run_can_be_abandoned(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.loop())
    runs = [runtime.run("m", rounds(ENDLESS), []) for _ in range(6)]
    await is_running(runtime)
    for run in runs:
        run.cancel()
        runtime.abandon(run)
    assert await count_of(runtime.run("m", rounds(2), [])) == 2
    runtime.abandon(asyncio.get_running_loop().create_future())  # of nobody


@pytest.mark.parametrize("instances", [1, 3])
async def test_a_thousand_runs_abandoned_at_random_harm_no_other(
    runtime: Runtime, tmp_path: Path, instances: int
) -> None:
    await load(runtime, tmp_path, onnx_models.loop(), instances=instances)
    answered, abandoned = 0, 0

    async def one(n: int) -> None:
        nonlocal answered, abandoned
        run = runtime.run("m", rounds(n), [])
        if leaves := random.random() < 0.5:
            for _ in range(random.choice((0, 0, 1, 2, 5, 20))):
                await asyncio.sleep(0)
            runtime.abandon(run)
        try:
            assert await count_of(run) == n
            answered += 1
        except RunFailed:
            assert leaves
            abandoned += 1

    for _ in range(100):
        await asyncio.gather(*(one(random.choice((0, 1, 100, 3_000))) for _ in range(10)))
    assert answered + abandoned == 1000
    assert abandoned > 50
    assert slots_in_use(runtime) == 0
    assert await count_of(runtime.run("m", rounds(11), [])) == 11
