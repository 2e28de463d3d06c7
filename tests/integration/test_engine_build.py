"""Builds in a process of their own, over the fake: progress, cancellation, crashes, hangs, and what the cache keeps.

Not here: the real builder (``test_engine_rtx``), the calls of TensorRT (``unit/test_engine_plan``).
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hardware import confinement, engine_cache
from hardware.engine_build import BuildLimits, build_engine
from hardware.errors import BackendUnavailable, EngineNotBuilt, ModelRefused
from tests import onnx_models
from tests.engine_requests import SITE, Cache

MODEL = onnx_models.add()
OPEN = """
import sys
from hardware.backend import LoadOptions
from hardware.errors import EngineNotBuilt
from hardware.tensorrt_session import open_session
try:
    open_session("", LoadOptions(backend="tensorrt", engine_entry=sys.argv[1], engine_key_file=sys.argv[2]))
except EngineNotBuilt as error:
    print("refused:", error.text)
"""


@pytest.fixture(autouse=True)
def fake_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SITE))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def build_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_build(child)]


def is_build(child: psutil.Process) -> bool:
    try:
        return "hardware.engine_process" in child.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


async def test_an_engine_is_built_once_and_found_by_the_next_process(cache: Cache) -> None:
    built, shares = await cache.build_told(MODEL)
    assert (built.backend, built.cached) == ("tensorrt-fake", False)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    found, told = await cache.build_told(MODEL)
    assert found == replace(built, cached=True)
    assert told == [1.0]
    plan = engine_cache.read(Path(built.entry), cache.key_file)
    assert len(plan) == built.plan_bytes
    assert plan.endswith(MODEL)


@pytest.mark.parametrize(("version", "other"), [("10.3", "10.16"), ("10.16", "11.4"), ("11.4", "10.3")])
async def test_another_version_of_tensorrt_builds_anew(
    version: str, other: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_VERSION", version)
    first = await cache.build(MODEL)
    monkeypatch.setenv("FAKE_TRT_VERSION", other)
    second = await cache.build(MODEL)
    assert not second.cached
    assert second.key != first.key
    monkeypatch.setenv("FAKE_TRT_VERSION", version)
    assert await cache.build(MODEL) == replace(first, cached=True)


async def test_another_device_builds_anew(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await cache.build(MODEL)
    monkeypatch.setenv("FAKE_CUDA_CC", "8.9")
    assert (await cache.build(MODEL)).key != first.key


async def test_a_damaged_entry_is_built_anew(cache: Cache) -> None:
    built = await cache.build(MODEL)
    plan = Path(built.entry) / "plan"
    await asyncio.to_thread(plan.write_bytes, b"x" * built.plan_bytes)
    again = await cache.build(MODEL)
    assert not again.cached
    assert again.key == built.key
    assert cache.entries() == [built.key, f"{built.key}.bad"]
    assert engine_cache.read(Path(again.entry), cache.key_file).endswith(MODEL)


async def test_a_cache_of_another_device_is_built_anew(cache: Cache) -> None:
    built = await cache.build(MODEL)
    await asyncio.to_thread(cache.key_file.unlink)
    again = await cache.build(MODEL)
    assert not again.cached
    assert cache.entries() == [built.key, f"{built.key}.bad"]


async def cancelled_at_first_share(cache: Cache) -> float:
    """Begin a build, cancel it as soon as TensorRT steps, and return how long that took to end."""
    stepping = asyncio.Event()

    def on_progress(share: float) -> None:
        if share > 0:
            stepping.set()

    request = await asyncio.to_thread(cache.request, MODEL)
    task = asyncio.ensure_future(build_engine(request, on_progress, cache.limits))
    await asyncio.wait({task, asyncio.ensure_future(stepping.wait())}, return_when=asyncio.FIRST_COMPLETED)
    begun = asyncio.get_running_loop().time()
    assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return asyncio.get_running_loop().time() - begun


async def test_a_cancelled_build_ends_by_itself_and_leaves_nothing(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")
    monkeypatch.setenv("FAKE_TRT_BUILD_STEPS", "6000")
    assert await cancelled_at_first_share(cache) < cache.limits.grace_s
    assert build_processes() == []
    assert cache.entries() == []


async def test_a_build_that_does_not_listen_is_killed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "deaf")
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "600")
    monkeypatch.setenv("FAKE_TRT_BUILD_STEPS", "6000")
    cache.limits = BuildLimits(stall_s=60.0, grace_s=0.2)
    assert await cancelled_at_first_share(cache) >= 0.2
    assert build_processes() == []
    assert cache.entries() == []


async def test_a_second_cancellation_does_not_leave_the_process_behind(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "hang")
    cache.limits = BuildLimits(stall_s=60.0, grace_s=0.5)
    request = await asyncio.to_thread(cache.request, MODEL)
    begun = asyncio.Event()
    task = asyncio.ensure_future(build_engine(request, lambda _: begun.set(), cache.limits))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert build_processes() == []


async def test_a_hang_is_ended_and_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "hang")
    cache.limits = BuildLimits(stall_s=1.5, grace_s=0.2)
    with pytest.raises(EngineNotBuilt, match=r"the build hung for 1\.5 s"):
        await cache.build(MODEL)
    assert build_processes() == []


async def test_a_slow_build_that_steps_is_no_hang(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.get_running_loop().time()
    await cache.build(onnx_models.pool())
    stall_s = max(1.5, 5 * (asyncio.get_running_loop().time() - begun))  # to start up is silence too
    monkeypatch.setenv("FAKE_TRT_BUILD_S", str(1.5 * stall_s))
    monkeypatch.setenv("FAKE_TRT_BUILD_STEPS", "40")
    cache.limits = BuildLimits(stall_s=stall_s, grace_s=1.0)
    built, shares = await cache.build_told(MODEL)
    assert not built.cached
    assert len(set(shares)) > 5


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segv", "the build process was ended by SIGSEGV"),
        ("kill", "was ended by SIGKILL, most likely for want of memory"),
        ("none", "TensorRT cannot build the model: .*Could not find any implementation"),
    ],
)
async def test_a_build_that_dies_is_named_and_the_next_one_works(
    how: str, said: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", how)
    with pytest.raises(EngineNotBuilt, match=said):
        await cache.build(MODEL)
    assert cache.entries() == []
    monkeypatch.delenv("FAKE_TRT_BUILD")
    assert not (await cache.build(MODEL)).cached


async def test_what_tensorrt_prints_is_no_answer(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "noisy")
    assert not (await cache.build(MODEL)).cached


async def test_a_build_killed_from_outside_leaves_nothing_that_counts(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "hang")
    request = await asyncio.to_thread(cache.request, MODEL)

    def kill(_: float) -> None:
        for process in build_processes():
            process.kill()

    with pytest.raises(EngineNotBuilt, match="SIGKILL"):
        await build_engine(request, kill, cache.limits)
    assert cache.entries() == []


async def test_errors_come_back_as_they_are(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelRefused, match="not a well-formed ONNX model"):
        await cache.build(b"garbage" * 100)
    with pytest.raises(EngineNotBuilt, match=r"input 'INPUT' \[-1\] has a free dimension and no profile"):
        await cache.build(onnx_models.identity("FP32", (-1,)))
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    with pytest.raises(BackendUnavailable):
        await cache.build(MODEL)


async def test_a_device_that_is_not_at_hand_is_refused_by_name(cache: Cache) -> None:
    cache.compute_capability = (8, 6)
    with pytest.raises(BackendUnavailable, match="builds only for a device that is at hand"):
        await cache.build(MODEL)


async def test_a_model_that_changed_is_refused(cache: Cache) -> None:
    request = await asyncio.to_thread(cache.request, MODEL)
    await asyncio.to_thread(Path(request.model_path).write_bytes, onnx_models.pool())
    with pytest.raises(ModelRefused, match="has changed"):
        await build_engine(request, lambda _: None, cache.limits)


async def test_no_error_names_a_folder_of_this_box(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    for how in ("none", "segv"):
        monkeypatch.setenv("FAKE_TRT_BUILD", how)
        with pytest.raises(EngineNotBuilt) as caught:
            await cache.build(MODEL)
        assert str(cache.folder.parent) not in caught.value.text


async def test_two_agents_that_build_the_same_at_once_share_one_entry(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD_S", "0.5")
    first, second = await asyncio.gather(cache.build(MODEL), cache.build(MODEL))
    assert first.entry == second.entry
    assert cache.entries() == [first.key]
    assert engine_cache.read(Path(first.entry), cache.key_file).endswith(MODEL)


async def test_secrets_of_the_agent_do_not_reach_the_build(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TRT_BUILD", "hang")
    monkeypatch.setenv("MESH_SECRET_OF_THE_TEST", "x")
    request = await asyncio.to_thread(cache.request, MODEL)
    found: list[dict[str, str]] = []

    def look(_: float) -> None:
        for process in build_processes():
            found.append(process.environ())
            process.kill()

    with pytest.raises(EngineNotBuilt):
        await build_engine(request, look, cache.limits)
    assert "MESH_SECRET_OF_THE_TEST" not in found[0]
    assert found[0]["FAKE_TRT_BUILD"] == "hang"
    assert os.environ["MESH_SECRET_OF_THE_TEST"] == "x"


async def test_a_plan_that_verifies_and_is_refused_all_the_same_is_built_anew(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the libraries that the key does not see: the worker sets it aside."""
    built = await cache.build(MODEL)
    monkeypatch.setenv("FAKE_TRT_FAIL", "deserialize_cuda_engine")
    command = [sys.executable, "-c", OPEN, built.entry, str(cache.key_file)]
    done = await asyncio.to_thread(
        subprocess.run, command, env=confinement.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("refused: "), done.stderr
    assert cache.entries() == [f"{built.key}.bad"]
    assert not (await cache.build(MODEL)).cached
