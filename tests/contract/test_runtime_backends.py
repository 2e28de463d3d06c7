"""One suite for every backend and mode: what a caller may rely on, whichever of them runs the model.

ONNX Runtime in a worker and in process, TensorRT over the fakes in a worker, each with one instance and with three.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hardware.backend import EngineOptions, Loaded, LoadOptions, RawTensor, ShapeRange
from hardware.errors import DeviceFault, InvalidInput, NotLoaded, RunFailed, WorkerDied
from hardware.frames import DEVICE_FAULT_STATUS
from hardware.inline_runtime import InlineRuntime
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from tests import onnx_models
from tests.engine_requests import SITE, Cache
from tests.onnx_models import simple

WORKER = WorkerOptions(slots=4, slot_bytes=64 * 1024, close_grace_s=0.5)
MOST_ROWS = 8
PROFILE = tuple(ShapeRange(name, (1, 16), (4, 16), (MOST_ROWS, 16)) for name in ("INPUT0", "INPUT1"))
NAMES = ("OUTPUT0", "OUTPUT1")


@dataclass(frozen=True)
class Place:
    """Where the model ``simple`` is loaded as "m", and with which options."""

    runtime: Runtime
    loaded: Loaded
    path: str
    options: LoadOptions


async def tensorrt(folder: Path) -> LoadOptions:
    cache = Cache(folder / "cache")
    built = await cache.build(simple(), EngineOptions(profiles=(PROFILE,)))
    return LoadOptions("tensorrt", engine_entry=str(built.entry), engine_key_file=str(cache.key_file))


Open = Callable[[], AbstractAsyncContextManager[Runtime]]
MODES: dict[str, tuple[bool, Open]] = {
    "worker": (False, lambda: WorkerRuntime(WORKER)),
    "inline": (False, InlineRuntime),
    "tensorrt-fake": (True, lambda: WorkerRuntime(WORKER)),
}


@pytest.fixture(params=list(itertools.product(MODES, (1, 3))), ids=lambda param: f"{param[0]}, {param[1]} instances")
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    mode, instances = request.param
    on_tensorrt, opened = MODES[mode]
    if on_tensorrt:
        monkeypatch.setenv("PYTHONPATH", str(SITE))
    options = replace(await tensorrt(tmp_path) if on_tensorrt else LoadOptions(), instances=instances)
    path = str(onnx_models.save(simple(), tmp_path / "m.onnx"))
    async with opened() as runtime:
        yield Place(runtime, await runtime.load("m", path, options), path, options)


def request_of(rows: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> list[RawTensor]:
    return [
        RawTensor("INPUT0", "INT32", rows.shape, rows.tobytes()),
        RawTensor("INPUT1", "INT32", rows.shape, np.full_like(rows, 3).tobytes()),
    ]


def some_rows(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.array([random.randrange(-1000, 1000) for _ in range(16 * count)], dtype=np.int32).reshape(count, 16)


def numbers(tensor: RawTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.frombuffer(tensor.whole, dtype=np.int32).reshape(tensor.shape)


async def check(place: Place, count: int) -> None:
    rows = some_rows(count)
    total, difference = await asyncio.wait_for(place.runtime.run("m", request_of(rows), []), 60)
    np.testing.assert_array_equal(numbers(total), rows + 3)
    np.testing.assert_array_equal(numbers(difference), rows - 3)


async def test_it_says_what_it_is(place: Place) -> None:
    backend = {"tensorrt": "tensorrt-fake"}.get(place.options.backend, place.options.backend)
    assert (place.loaded.requested, place.loaded.effective) == (place.options.backend, backend)
    assert [info.name for info in place.loaded.signature.inputs] == ["INPUT0", "INPUT1"]
    assert [info.name for info in place.loaded.signature.outputs] == list(NAMES)
    assert place.loaded.batch_limit == (MOST_ROWS if backend == "tensorrt-fake" else None)


async def test_outputs_come_in_the_order_asked(place: Place) -> None:
    rows = some_rows(2)
    want = {"OUTPUT0": rows + 3, "OUTPUT1": rows - 3}
    for asked in [("OUTPUT0",), ("OUTPUT1",), *itertools.permutations(NAMES)]:
        results = await place.runtime.run("m", request_of(rows), asked)
        assert [result.name for result in results] == list(asked)
        for result in results:
            np.testing.assert_array_equal(numbers(result), want[result.name])
    inputs = list(reversed(request_of(rows)))
    results = await place.runtime.run("m", inputs, [])
    assert [result.name for result in results] == list(NAMES)
    np.testing.assert_array_equal(numbers(results[0]), rows + 3)


async def test_a_batch_is_its_rows_one_by_one(place: Place) -> None:
    for count in (1, 2, 5, MOST_ROWS):
        rows = some_rows(count)
        singles = await asyncio.gather(*(place.runtime.run("m", request_of(row[None]), []) for row in rows))
        first = tuple(memoryview(row.tobytes()) for row in rows)
        second = tuple(np.full(16, 3, dtype=np.int32).data for _ in rows)
        pieces = [
            RawTensor("INPUT0", "INT32", rows.shape, first),
            RawTensor("INPUT1", "INT32", rows.shape, second),
        ]
        for batch in (request_of(rows), pieces):
            together = await place.runtime.run("m", batch, [])
            for number, result in enumerate(together):
                np.testing.assert_array_equal(
                    numbers(result), np.concatenate([numbers(single[number]) for single in singles])
                )


async def test_many_at_once_of_all_sizes_keep_their_values(place: Place) -> None:
    for _ in range(10):
        await asyncio.gather(*(check(place, random.randint(1, MOST_ROWS)) for _ in range(20)))


async def test_wrong_inputs_are_refused_before_the_backend_and_harm_nobody(place: Place) -> None:
    rows = some_rows(2)
    first, second = request_of(rows)
    wrong: list[list[RawTensor]] = [
        [first],
        [first, second, second],
        [first, second._replace(name="INPUT2")],
        [first, second._replace(datatype="FP32")],
        [first, second._replace(shape=(16, 2))],
        [first, second._replace(shape=(32,))],
        [first, second._replace(data=bytes(127))],
        [first, second._replace(data=(bytes(64), bytes(65)))],
        [first, second._replace(shape=(-2, 16))],
    ]
    if place.loaded.batch_limit is not None:
        wrong.append(request_of(some_rows(MOST_ROWS + 1)))
    runs = [(place.runtime.run("m", inputs, []), check(place, 3)) for inputs in wrong]
    for run, neighbour in runs:
        with pytest.raises(InvalidInput):
            await run
        await neighbour
    with pytest.raises(InvalidInput):
        await place.runtime.run("m", [first, second], ["OUTPUT2"])
    await check(place, MOST_ROWS)


async def test_abandoned_runs_end_or_are_right_and_the_others_are_right(place: Place) -> None:
    async def one(leaves: bool) -> str:
        rows = some_rows(random.randint(1, MOST_ROWS))
        run = place.runtime.run("m", request_of(rows), [])
        if leaves:
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            place.runtime.abandon(run)
        try:
            total, _ = await asyncio.wait_for(run, 60)
        except RunFailed:
            assert leaves
            return "abandoned"
        np.testing.assert_array_equal(numbers(total), rows + 3)
        return "answered"

    ends = [end for _ in range(15) for end in await asyncio.gather(*(one(n % 2 == 0) for n in range(20)))]
    assert ends.count("answered") >= 150
    if isinstance(place.runtime, WorkerRuntime):  # in process, short runs are done before anybody can leave
        assert "abandoned" in ends
        assert len(place.runtime._calls.slots) == 0


async def test_unloaded_and_loaded_again(place: Place) -> None:
    for _ in range(3):
        last = [place.runtime.run("m", request_of(some_rows(2)), []) for _ in range(12)]
        await place.runtime.unload("m")
        assert len(await asyncio.gather(*last)) == 12
        with pytest.raises(NotLoaded):
            await place.runtime.run("m", request_of(some_rows(1)), [])
        await place.runtime.load("m", place.path, place.options)
        await check(place, 4)


async def test_two_copies_side_by_side(place: Place) -> None:
    await place.runtime.load("other", place.path, replace(place.options, instances=2))
    rows = some_rows(3)
    runs = [place.runtime.run(key, request_of(rows), ["OUTPUT1"]) for key in ("m", "other") * 20]
    for (result,) in await asyncio.gather(*runs):
        np.testing.assert_array_equal(numbers(result), rows - 3)
    await place.runtime.unload("other")
    await check(place, 1)


async def test_close_may_be_repeated_and_fails_what_waits(place: Place) -> None:
    runs = [place.runtime.run("m", request_of(some_rows(1)), []) for _ in range(20)]
    await asyncio.wait_for(asyncio.gather(place.runtime.close(), place.runtime.close()), 60)
    await place.runtime.close()
    assert not place.runtime.alive
    for end in await asyncio.gather(*runs, return_exceptions=True):
        assert isinstance(end, (list, WorkerDied))
    with pytest.raises(NotLoaded, match="closed"):
        await place.runtime.run("m", request_of(some_rows(1)), [])
    place.runtime.abandon(runs[0])


async def test_a_sticky_fault_of_tensorrt_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setenv("FAKE_TRT_STICKY_AT", "3")
    options = await tensorrt(tmp_path)
    deaths: list[str] = []
    async with WorkerRuntime(WORKER, on_death=deaths.append) as runtime:
        await runtime.load("m", str(tmp_path / "none.onnx"), replace(options, instances=2))
        rows = some_rows(2)
        for _ in range(2):
            assert await runtime.run("m", request_of(rows), [])
        runs = [runtime.run("m", request_of(rows), []) for _ in range(6)]
        ends = await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 60)
        assert isinstance(ends[-1], DeviceFault)
        assert all(isinstance(end, (list, DeviceFault)) for end in ends)
        assert "device fault" in deaths[0]
        with pytest.raises(WorkerDied, match="device fault") as caught:
            await runtime.run("m", request_of(rows), [])
        assert caught.value.exit_code == DEVICE_FAULT_STATUS
