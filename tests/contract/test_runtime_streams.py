"""What a runtime promises of streams: every answer in order, at the consumer's pace, until one side ends it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import uvloop

from hardware import frames
from hardware.arena import Placed
from hardware.backend import Loaded, LoadOptions, RawTensor
from hardware.errors import BackendUnavailable, InvalidInput, NotLoaded, RunFailed, TensorTooLarge, WorkerDied
from hardware.inline_runtime import InlineRuntime
from hardware.parts import Parts
from hardware.runtime import Runtime
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from tests import onnx_models, python_steps
from tests.contract.tensors import load, pair
from tests.contract.test_worker_runtime import framed, speak_as
from tests.fakes import until

OPTIONS = WorkerOptions(slots=4, slot_bytes=64 * 1024, close_grace_s=20.0)


@pytest.fixture
async def worker() -> AsyncIterator[WorkerRuntime]:
    async with WorkerRuntime(OPTIONS) as runtime:
        yield runtime


@pytest.fixture(params=["worker", "inline"])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    async with WorkerRuntime(OPTIONS) if request.param == "worker" else InlineRuntime() as runtime:
        yield runtime


async def load_step(
    runtime: Runtime, folder: Path, source: str = python_steps.REPEAT, key: str = "m", instances: int = 1
) -> Loaded:
    path = python_steps.save(folder, source, name=key)
    return await runtime.load(key, str(path), LoadOptions(backend="python", instances=instances))


def ints(values: Sequence[int], name: str = "IN") -> list[RawTensor]:
    array = np.asarray(values, dtype=np.int32)
    return [RawTensor(name, "INT32", array.shape, array.tobytes())]


def value(part: Sequence[RawTensor]) -> int:
    return int(np.frombuffer(part[0].whole, dtype=np.int32)[0])


async def every(parts: Parts) -> list[int]:
    return [value(part) async for part in parts]


def notes(folder: Path, key: str = "m") -> list[str]:
    path = folder / key / "1" / "notes"
    return path.read_text().split("\n")[:-1] if path.exists() else []


async def has_noted(folder: Path, what: str) -> None:
    await until(lambda: what in notes(folder))


@pytest.mark.parametrize("instances", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 10, 500])
async def test_every_answer_comes_in_order(worker: WorkerRuntime, tmp_path: Path, count: int, instances: int) -> None:
    assert (await load_step(worker, tmp_path, instances=instances)).decoupled
    parts = worker.stream("m", ints(range(count)), ())
    assert await asyncio.wait_for(every(parts), 60) == list(range(count))
    assert parts.ended.done()
    assert len(worker._calls.slots) == 0
    assert await every(worker.stream("m", ints([7]), ["OUT"])) == [7]


async def test_only_the_outputs_asked_for_in_the_order_asked(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path)
    async for part in worker.stream("m", ints([5]), ["INDEX", "OUT"]):
        assert [tensor.name for tensor in part] == ["INDEX", "OUT"]
    with pytest.raises(InvalidInput, match="no output 'NONE'"):
        await anext(worker.stream("m", ints([5]), ["NONE"]))


async def test_the_producer_goes_on_when_a_part_is_taken(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path, python_steps.NOTED)
    parts = worker.stream("m", ints([1, 2, 3]), ())
    await has_noted(tmp_path, "made 1")
    first = await anext(parts)
    await has_noted(tmp_path, "made 2")
    assert value(first) == 1
    assert "made 3" not in notes(tmp_path)  # the second was not taken: nothing can have gone on behind it
    assert await every(parts) == [2, 3]
    assert notes(tmp_path) == ["began", "made 1", "made 2", "made 3", "was read to its end", "left"]


@pytest.mark.parametrize("instances", [1, 2])
async def test_one_that_is_abandoned_leaves_its_generator(
    worker: WorkerRuntime, tmp_path: Path, instances: int
) -> None:
    await load_step(worker, tmp_path, python_steps.NOTED, instances=instances)
    parts = worker.stream("m", ints(range(10)), ())
    await anext(parts)
    worker.abandon(parts.ended)
    with pytest.raises(RunFailed, match="abandoned"):
        await asyncio.wait_for(parts.ended, 60)
    assert notes(tmp_path)[-1] == "left"
    assert "was read to its end" not in notes(tmp_path)
    assert len(worker._calls.slots) == 0
    assert await every(worker.stream("m", ints([1]), ())) == [1]


async def test_one_that_waits_is_never_begun(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path, python_steps.NOTED)
    first = worker.stream("m", ints(range(3)), ())
    waiting = [worker.stream("m", ints([9]), ()) for _ in range(6)]  # some in slots, some not
    for parts in waiting:
        worker.abandon(parts.ended)
    assert await every(first) == [0, 1, 2]
    for parts in waiting:
        with pytest.raises(RunFailed, match="before it began"):
            await anext(parts)
    assert "made 9" not in notes(tmp_path)


async def test_streams_of_one_model_go_on_side_by_side(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path, instances=3)
    streams = [worker.stream("m", ints(range(10 * n, 10 * n + 10)), ()) for n in range(3)]
    for step in range(10):
        for n, parts in enumerate(streams):  # none of them could give its first answer behind another
            assert value(await asyncio.wait_for(anext(parts), 60)) == 10 * n + step
    for parts in streams:
        with pytest.raises(StopAsyncIteration):
            await anext(parts)


async def test_a_stream_and_runs_go_on_beside_each_other(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path, instances=2)
    await load(worker, tmp_path, onnx_models.simple(), "other")
    parts = worker.stream("m", ints(range(5)), ())
    for n in range(5):
        assert value(await anext(parts)) == n
        (total,) = await worker.run("other", pair(n), ["OUTPUT0"])
        assert np.frombuffer(total.whole, dtype=np.int32)[0] == n + 1


async def test_a_death_ends_a_stream_at_once(tmp_path: Path) -> None:
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    runtime = WorkerRuntime(OPTIONS, on_death=died.set_result)
    await runtime.start()
    await load_step(runtime, tmp_path)
    parts = runtime.stream("m", ints(range(5)), ())
    assert value(await anext(parts)) == 0
    os.kill(runtime.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await every(parts)
    assert "SIGKILL" in await asyncio.wait_for(died, 60)
    await runtime.close()
    with pytest.raises(WorkerDied):
        await every(runtime.stream("m", ints([1]), ()))


@pytest.mark.parametrize("instances", [1, 2])
async def test_closing_ends_a_stream_without_the_grace(tmp_path: Path, instances: int) -> None:
    """A worker that waits for its consumer hears of the end, and leaves the generator before anybody kills it."""
    async with WorkerRuntime(OPTIONS) as runtime:
        await load_step(runtime, tmp_path, python_steps.NOTED, instances=instances)
        parts = runtime.stream("m", ints(range(5)), ())
        await anext(parts)
        await has_noted(tmp_path, "made 1")
    with pytest.raises(WorkerDied, match="closed"):
        await every(parts)
    if instances == 1:
        assert notes(tmp_path)[-1] == "left"


async def test_unloading_waits_for_a_stream(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path)
    parts = worker.stream("m", ints(range(3)), ())
    await anext(parts)
    unloading = asyncio.ensure_future(worker.unload("m"))
    assert await every(parts) == [1, 2]
    await asyncio.wait_for(unloading, 60)
    with pytest.raises(NotLoaded):
        await anext(worker.stream("m", ints([1]), ()))


async def test_a_part_that_does_not_fit_ends_the_stream(worker: WorkerRuntime, tmp_path: Path) -> None:
    source = python_steps.REPEAT.replace('"OUT": ("INT32", [1])', '"OUT": ("INT32", [-1])').replace(
        "np.array([value])", "np.zeros(value, np.int32)"
    )
    await load_step(worker, tmp_path, source)
    parts = worker.stream("m", ints([4, 1_000_000, 4]), ())
    assert (await anext(parts))[0].shape == (4,)
    with pytest.raises(TensorTooLarge, match="'OUT' ends at byte 4000000"):
        await anext(parts)
    with pytest.raises(TensorTooLarge, match="'OUT' ends at byte"):
        await anext(parts)  # and says so again
    assert await every(worker.stream("m", ints([0]), ["INDEX"])) == [0]


async def test_a_run_is_no_stream_and_a_stream_no_run(runtime: Runtime, tmp_path: Path) -> None:
    await load(runtime, tmp_path, onnx_models.simple())
    with pytest.raises(InvalidInput, match="answers once"):
        await anext(runtime.stream("m", pair(), ()))
    with pytest.raises(NotLoaded):
        await anext(runtime.stream("none", pair(), ()))
    if isinstance(runtime, WorkerRuntime):
        await load_step(runtime, tmp_path, key="step")
        with pytest.raises(InvalidInput, match="any number of times"):
            await runtime.run("step", ints([1]), ())
    assert len(await runtime.run("m", pair(), ())) == 2


async def test_a_step_runs_in_no_process_but_its_own(tmp_path: Path) -> None:
    async with InlineRuntime() as runtime:
        with pytest.raises(BackendUnavailable, match="worker process only"):
            await load_step(runtime, tmp_path)


@pytest.mark.parametrize(
    "lie",
    [
        (frames.Part(0, 1, []), frames.Part(0, 1, [])),  # before the first was taken
        (frames.Part(0, 2, []),),
        (frames.Part(0, 1, [Placed("OUT", "INT64", (), 64 * 1024, 8)]),),
    ],
)
async def test_a_worker_that_streams_nonsense_is_ended(
    worker: WorkerRuntime, tmp_path: Path, lie: tuple[frames.Reply, ...]
) -> None:
    await load_step(worker, tmp_path)
    parts = worker.stream("m", ints([1, 2, 3]), ())
    os.kill(worker.pid, signal.SIGSTOP)  # before it reads the request, or after it wrote the first part
    speak_as(worker.pid, framed(*lie))
    with pytest.raises(WorkerDied, match="after an answer that is none"):
        await asyncio.wait_for(parts.ended, 60)


@pytest.mark.parametrize("instances", [1, 4])
async def test_consumers_that_leave_at_any_moment_leave_nothing_behind(
    worker: WorkerRuntime, tmp_path: Path, instances: int
) -> None:
    await load_step(worker, tmp_path, instances=instances)
    luck = random.Random(instances)

    async def consume(count: int, taken: int, patience: int) -> None:
        parts = worker.stream("m", ints(range(count)), ())
        for n in range(min(taken, count)):
            assert value(await anext(parts)) == n
            for _ in range(luck.randrange(patience)):
                await asyncio.sleep(0)
        if taken > count:
            assert await every(parts) == []
        worker.abandon(parts.ended)
        await asyncio.wait([parts.ended])

    consumers = [consume(luck.randrange(20), luck.randrange(25), luck.randint(1, 8)) for _ in range(200)]
    await asyncio.wait_for(asyncio.gather(*consumers), 60)
    assert len(worker._calls.slots) == 0
    assert await every(worker.stream("m", ints([3]), ())) == [3]


def test_all_of_it_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with WorkerRuntime(OPTIONS) as runtime:
            await load_step(runtime, tmp_path, instances=2)
            streams = [runtime.stream("m", ints(range(n)), ()) for n in range(10)]
            assert await asyncio.gather(*map(every, streams)) == [list(range(n)) for n in range(10)]
            last = runtime.stream("m", ints(range(5)), ())
            assert value(await anext(last)) == 0
            runtime.kill()
            with pytest.raises(WorkerDied):
                await every(last)

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(scenario(), 60))
    finally:
        loop.close()


async def test_wrong_inputs_are_refused_and_the_next_stream_works(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load_step(worker, tmp_path)
    for wrong in ([], ints([1], "OTHER"), [RawTensor("IN", "INT32", (1, 1), bytes(4))]):
        with pytest.raises(InvalidInput):
            await anext(worker.stream("m", wrong, ()))
    assert await every(worker.stream("m", ints([3]), ())) == [3]


SPAWNS = """
import os
import numpy as np
inputs = {"IN": ("INT32", [-1])}
outputs = {"OPEN": ("BYTES", [-1])}

def infer(inputs):
    read, write = os.pipe()
    os.set_inheritable(write, True)
    os.system(f"ls -l /proc/self/fd >&{write}")
    os.close(write)
    with open(read, "rb") as listed:
        return {"OPEN": np.array(listed.read().splitlines(), object)}
"""


async def test_what_a_step_starts_holds_neither_arenas_nor_pipes(worker: WorkerRuntime, tmp_path: Path) -> None:
    """It may outlive the worker, and would keep their memory."""
    await load_step(worker, tmp_path, SPAWNS)
    (listed,) = await worker.run("m", ints([1]), ())
    assert b"memfd" not in bytes(listed.whole)
    assert bytes(listed.whole).count(b" -> ") == 5, "0 to 2, that of its pipe, the folder"
