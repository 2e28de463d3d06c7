"""What a worker process adds to the contract of a runtime: it may die, hang or lie, and its parent goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop

from hardware import frames
from hardware.arena import Placed
from hardware.backend import LoadOptions, RawTensor
from hardware.errors import DeviceOutOfMemory, InvalidInput, RunFailed, TensorTooLarge, WorkerDied
from hardware.worker_process import WorkerOptions
from hardware.worker_runtime import WorkerRuntime
from tests import onnx_models
from tests.contract.tensors import ENDLESS, floats, fp32, int64, load, pair

MODELS = Path(__file__).resolve().parents[2] / "models"
OPTIONS = WorkerOptions(slots=2, slot_bytes=64 * 1024, close_grace_s=0.5)


@pytest.fixture
async def worker() -> AsyncIterator[WorkerRuntime]:
    async with WorkerRuntime(OPTIONS) as runtime:
        yield runtime


def open_files() -> set[str]:
    gc.collect()
    # The descriptor that lists the directory is closed again, and so has no link.
    links = (Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd"))
    return {f"{link.name} {os.readlink(link)}" for link in links if link.is_symlink()}


async def end_of(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, 60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_death_fails_what_is_in_flight_at_once(tmp_path: Path, number: signal.Signals) -> None:
    before = open_files()
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    runtime = WorkerRuntime(OPTIONS, on_death=died.set_result)
    await runtime.start()
    await load(runtime, tmp_path, onnx_models.loop())
    futures = [runtime.run("m", [int64("N", ENDLESS)], []) for _ in range(5)]  # two in slots, three waiting
    pending_load = asyncio.ensure_future(load(runtime, tmp_path, onnx_models.add(), "other"))
    await asyncio.sleep(0)
    os.kill(runtime.pid, number)
    assert number.name in await asyncio.wait_for(died, 60)
    pending: list[asyncio.Future[Any]] = [*futures, pending_load]
    for future in pending:
        with pytest.raises(WorkerDied, match=number.name) as caught:
            await future
        assert (caught.value.signal, caught.value.exit_code) == (number, None)
    assert not runtime.alive
    with pytest.raises(WorkerDied, match=number.name):
        await runtime.run("m", [int64("N", 1)], [])
    with pytest.raises(WorkerDied, match=number.name):
        await runtime.unload("m")
    await runtime.close()
    assert open_files() == before


async def test_a_hang_is_ended_by_kill_and_a_new_worker_serves(worker: WorkerRuntime, tmp_path: Path) -> None:
    deaths: list[str] = []
    worker.on_death = deaths.append
    await load(worker, tmp_path, onnx_models.loop())
    hang = worker.run("m", [int64("N", ENDLESS)], [])
    worker.kill()
    worker.kill()
    with pytest.raises(WorkerDied) as caught:
        await asyncio.wait_for(hang, 60)
    assert caught.value.signal == signal.SIGKILL
    assert deaths == [caught.value.text]
    async with WorkerRuntime(OPTIONS) as second:
        await load(second, tmp_path, onnx_models.loop())
        (count,) = await second.run("m", [int64("N", 7)], [])
        assert np.frombuffer(count.whole, dtype=np.int64)[0] == 7


async def test_the_process_is_gone_after_close_even_if_it_hangs(tmp_path: Path) -> None:
    async with WorkerRuntime(OPTIONS) as runtime:
        await load(runtime, tmp_path, onnx_models.loop())
        hang = runtime.run("m", [int64("N", ENDLESS)], [])
        process = psutil.Process(runtime.pid)
    with pytest.raises(WorkerDied, match="closed"):
        await hang
    assert not process.is_running()


async def test_slots_and_descriptors_do_not_grow(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load(worker, tmp_path, onnx_models.simple())
    await worker.run("m", pair(), [])
    before, of_worker = open_files(), psutil.Process(worker.pid).num_fds()
    for _ in range(20):
        futures = [worker.run("m", pair(n), []) for n in range(10)]
        for future in futures[::3]:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)
    await worker.run("m", pair(), [])
    assert len(worker._calls.slots) == 0
    assert open_files() == before
    assert psutil.Process(worker.pid).num_fds() == of_worker


async def test_a_cancelled_run_keeps_its_slot_until_the_worker_is_done(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load(worker, tmp_path, onnx_models.loop())
    given_up = worker.run("m", [int64("N", 100_000)], [])
    given_up.cancel()
    assert len(worker._calls.slots) == 1
    answers = await asyncio.gather(*(worker.run("m", [int64("N", n)], []) for n in (5, 6, 7)))
    assert [np.frombuffer(a.whole, dtype=np.int64)[0] for (a,) in answers] == [5, 6, 7]


async def test_tensors_that_do_not_fit_a_slot_are_refused(worker: WorkerRuntime, tmp_path: Path) -> None:
    await load(worker, tmp_path, onnx_models.identity("FP32"), "same")
    await load(worker, tmp_path, onnx_models.memory_bomb(), "bomb")
    await load(worker, tmp_path, onnx_models.loop(), "loop")
    fits = np.arange(16 * 1024, dtype=np.float32)
    (result,) = await worker.run("same", [fp32("INPUT", fits)], [])
    np.testing.assert_array_equal(floats(result), fits)
    too_large = fp32("INPUT", np.zeros(16 * 1024 + 1))
    with pytest.raises(TensorTooLarge):
        await worker.run("same", [too_large], [])
    with pytest.raises(TensorTooLarge):  # an output
        await worker.run("bomb", [int64("N", [200, 200])], ["Z"])
    busy = [worker.run("loop", [int64("N", 1000)], []) for _ in range(2)]
    with pytest.raises(TensorTooLarge):  # found out when its turn comes
        await worker.run("same", [too_large], [])
    await asyncio.gather(*busy)
    with pytest.raises(InvalidInput, match="too long"):
        await worker.run("same", [fp32("INPUT", [1])], ["x" * (frames.MAX_FRAME_BYTES + 1)])
    assert await worker.run("same", [fp32("INPUT", [1])], [])
    assert len(worker._calls.slots) == 0


async def test_a_memory_bomb_meets_the_limit_and_nothing_else(tmp_path: Path) -> None:
    limit = WorkerOptions(slots=2, slot_bytes=64 * 1024, address_space_bytes=3 * 1024**3)
    async with WorkerRuntime(limit) as runtime:
        await load(runtime, tmp_path, onnx_models.memory_bomb())
        with pytest.raises(DeviceOutOfMemory):
            await runtime.run("m", [int64("N", [2**15, 2**16])], ["Y"])  # 8 GiB
        (total,) = await runtime.run("m", [int64("N", [2, 4])], ["Y"])
        assert floats(total) == 0


async def test_what_a_backend_prints_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = "import os\nos.write(1, b'EP Error' * 1000)\nprint('noise' * 1000, flush=True)\n"
    (tmp_path / "usercustomize.py").write_text(noise)
    (tmp_path / "sitecustomize.py").write_text(noise)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with WorkerRuntime(OPTIONS) as runtime:
        await load(runtime, tmp_path, onnx_models.simple())
        assert await runtime.run("m", pair(), [])


async def test_its_memory_is_told_without_the_arenas(worker: WorkerRuntime, tmp_path: Path) -> None:
    empty = worker.resident_bytes() or 0
    await load(worker, tmp_path, onnx_models.identity("UINT8"))
    loaded = worker.resident_bytes() or 0
    assert 4 * 1024**2 < empty < loaded
    async with WorkerRuntime(WorkerOptions(slots=1, slot_bytes=256 * 1024**2)) as other:
        await load(other, tmp_path, onnx_models.identity("UINT8"))
        await other.run("m", [RawTensor("INPUT", "UINT8", (200 * 1024**2,), bytes(200 * 1024**2))], [])
        assert (other.resident_bytes() or 0) < loaded + 100 * 1024**2


@pytest.mark.parametrize("ours", [False, True])
async def test_a_kill_for_want_of_memory_is_named(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    counts = iter((7, 8))  # before and after
    monkeypatch.setattr("hardware.worker_process.oom_kills", lambda: next(counts))
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with WorkerRuntime(OPTIONS, on_death=died.set_result) as runtime:
        if ours:
            runtime.kill()
        else:
            os.kill(runtime.pid, signal.SIGKILL)
        assert ("memory ran out" in await asyncio.wait_for(died, 60)) != ours


async def test_the_worker_is_confined(worker: WorkerRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_SECRET", "s3cret")
    async with WorkerRuntime(OPTIONS) as runtime:
        environment = psutil.Process(runtime.pid).environ()
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert "MESH_SECRET" not in environment
    proc = Path(f"/proc/{worker.pid}")
    core = next(line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core"))
    assert core.split()[4] == "0"
    inputs = [line.split() for line in (proc / "maps").read_text().splitlines() if "mesh-inputs" in line]
    assert {permissions for _, permissions, *_ in inputs} == {"r--s"}


async def test_a_worker_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    onnx_models.save(onnx_models.loop(), tmp_path / "m.onnx")
    script = (
        "import asyncio\n"
        "from hardware.backend import LoadOptions, RawTensor\n"
        "from hardware.worker_runtime import WorkerRuntime\n"
        "async def main():\n"
        "    runtime = WorkerRuntime()\n"
        "    await runtime.start()\n"
        f"    await runtime.load('m', {str(tmp_path / 'm.onnx')!r}, LoadOptions())\n"
        f"    hang = runtime.run('m', [RawTensor('N', 'INT64', (), ({ENDLESS}).to_bytes(8, 'little'))], [])\n"
        "    print(runtime.pid, flush=True)\n"
        "    await hang\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    worker = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60)))
    parent.kill()
    await parent.wait()
    await end_of(worker)


def framed(*replies: frames.Reply) -> bytes:
    buffer = bytearray()
    for reply in replies:
        frames.append(buffer, reply)
    return bytes(buffer)


def speak_as(pid: int, replies: bytes) -> None:
    """Write into the worker's own end of its reply pipe, whose number it was given as an argument."""
    replies_fd = psutil.Process(pid).cmdline()[5]
    Path(f"/proc/{pid}/fd/{replies_fd}").write_bytes(replies)


LIES = {
    "no such slot": framed(frames.Done(7, 1, [])),
    "an old generation": framed(frames.Done(0, 0, [])),
    "answered twice": framed(frames.Failed(0, 1, "run_failed", ""), frames.Failed(0, 1, "run_failed", "")),
    "nobody asked": framed(frames.Closed(99)),
    "beyond the slot": framed(frames.Done(0, 1, [Placed("Y", "INT64", (), 64 * 1024, 8)])),
    "before the slot": framed(frames.Done(0, 1, [Placed("Y", "INT64", (), -8, 8)])),
    "another size": framed(frames.Done(0, 1, [Placed("Y", "INT64", (2,), 0, 8)])),
    "a part of a run": framed(frames.Part(0, 1, [])),
    "a part of nothing": framed(frames.Part(1, 7, [])),
    "no message": b"\x01\x00\x00\x00\xc1",
    "a huge frame": b"\xff\xff\xff\xff",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_worker_that_answers_nonsense_is_ended(worker: WorkerRuntime, tmp_path: Path, lie: str) -> None:
    died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    worker.on_death = died.set_result
    await load(worker, tmp_path, onnx_models.loop())
    hangs = [worker.run("m", [int64("N", ENDLESS)], []) for _ in range(2)]
    speak_as(worker.pid, LIES[lie])
    assert "after an answer that is none" in await asyncio.wait_for(died, 60)
    with pytest.raises(WorkerDied, match="after an answer that is none"):
        await hangs[1]
    with pytest.raises(RunFailed if lie == "answered twice" else WorkerDied):
        await hangs[0]


@pytest.mark.models
async def test_trained_models_are_let_in_and_answer() -> None:
    async with WorkerRuntime() as runtime:
        for path in sorted(MODELS.glob("*/*/model.onnx")):
            loaded = await runtime.load(path.parent.parent.name, str(path), LoadOptions())
            assert loaded.signature.inputs
            assert loaded.signature.outputs
        if "silero_vad" in {path.name for path in MODELS.iterdir()}:
            silence = [fp32("input", np.zeros((1, 576))), fp32("state", np.zeros((2, 1, 128))), int64("sr", 16_000)]
            speech, state = await runtime.run("silero_vad", silence, [])
            assert 0 <= floats(speech)[0, 0] < 0.1
            assert state.shape == (2, 1, 128)


def test_all_of_it_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with WorkerRuntime(OPTIONS) as runtime:
            await load(runtime, tmp_path, onnx_models.simple())
            answers = await asyncio.gather(*(runtime.run("m", pair(n), ["OUTPUT0"]) for n in range(50)))
            assert [np.frombuffer(a.whole, dtype=np.int32)[0] for (a,) in answers] == list(range(1, 51))
            last = runtime.run("m", pair(), [])
            runtime.kill()
            await asyncio.wait([last])
            while runtime.alive:
                await asyncio.wait([runtime.run("m", pair(), [])])
        with pytest.raises(WorkerDied):
            await runtime.load("n", str(tmp_path / "m.onnx"), LoadOptions())

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(scenario(), 60))
    finally:
        loop.close()
