"""The life of instances on real runtimes and models: to READY, to FAILED by name, back after a crash, quarantine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, InstanceLost, MeshError, ModelNotReady
from tests import onnx_models
from tests.contract.tensors import ENDLESS, int64, pair
from tests.fakes import until
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

ZERO = int64("N", 0)
FOREVER = int64("N", ENDLESS)


def infer(loaded: Loaded, name: str, inputs: list[RawTensor], left_ms: float = 60_000.0) -> asyncio.Task[Any]:
    served = loaded.get(name).served
    return asyncio.ensure_future(loaded.instances.executor.infer(served, inputs, (), Deadline.after_ms(left_ms), 0))


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """No file can be opened any more, those open stay so: a worker cannot be started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def kill(loaded: Loaded, name: str, running: asyncio.Task[Any] | None = None) -> None:
    """SIGKILL the worker of a model, and return once the agent noticed."""
    runtime = loaded.runtime(name)
    if running is not None:
        await loaded.until_running(name)
    os.kill(runtime.pid, signal.SIGKILL)
    if running is not None:
        with pytest.raises(InstanceLost, match="SIGKILL"):
            await soon(running)
    await loaded.until_change(lambda: loaded.get(name).served.runtime is not runtime)


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_models_load_warm_up_and_answer(tmp_path: Path, isolation: str) -> None:
    repository(tmp_path, {"a": onnx_models.simple(), "b": onnx_models.add()})
    async with Loaded(tmp_path, isolation=isolation).running() as loaded:
        await loaded.settled()
        assert loaded.history["a"] == ["LOADING", "WARMING", "READY"]
        outputs = await soon(infer(loaded, "a", pair(5)))
        assert [t.name for t in outputs] == ["OUTPUT0", "OUTPUT1"]
        pids = {loaded.runtime("a").pid, loaded.runtime("b").pid}
        assert len(pids) == (2 if isolation == "model" else 1)
        assert (os.getpid() in pids) == (isolation == "none")
        for name in ("a", "b"):
            report = loaded.report(name)
            assert (report.state, report.reason, report.in_flight) == ("READY", "", 0)
            assert report.service_ms > 0  # the warm-up was the first estimate
            assert len(report.digest) == 64
    assert loaded.get("a").served.runtime is None


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_what_cannot_be_served_fails_by_name_and_the_others_are_ready(tmp_path: Path, isolation: str) -> None:
    toml = {"asks": "[warmup]\nNOPE = { shape = [1] }\n", "text": '[warmup]\nX = { shape = [1, 16], value = "t" }\n'}
    models = {name: onnx_models.add() for name in ("asks", "text", "good")}
    models |= {"garbage": b"\x08\x08 no protobuf", "empty": b"", "gather": onnx_models.gather()}
    toml["gather"] = "[warmup]\nI = { shape = [1], value = 99 }\n"
    repository(tmp_path, models, toml)
    async with Loaded(tmp_path, isolation=isolation).running() as loaded:
        await loaded.settled()
        states = {i.identity.name: i.state for i in loaded.instances.all()}
        assert states == {name: "READY" if name == "good" else "FAILED" for name in models}
        assert "NOPE" in loaded.get("asks").reason
        assert "text" in loaded.get("text").reason
        assert "warm-up" in loaded.get("gather").reason
        assert all(str(tmp_path) not in i.reason for i in loaded.instances.all())
        with pytest.raises(ModelNotReady):
            await soon(infer(loaded, "garbage", []))


async def test_a_warm_up_of_any_declared_size_is_refused_not_allocated(tmp_path: Path) -> None:
    toml = {"vast": f"[warmup]\nINPUT = {{ shape = [{10**15}] }}\n"}
    repository(tmp_path, {"vast": onnx_models.identity("FP32"), "good": onnx_models.add()}, toml)
    async with Loaded(tmp_path, isolation="device").running() as loaded:
        await loaded.settled()
        assert loaded.get("vast").state == "FAILED"
        assert "too large" in loaded.get("vast").reason
        assert loaded.get("good").state == "READY"


async def test_a_warm_up_that_never_ends_fails_the_model_and_frees_the_device(tmp_path: Path) -> None:
    toml = {"endless": f"[warmup]\nN = {{ shape = [], value = {ENDLESS} }}\n"}
    repository(tmp_path, {"endless": onnx_models.loop(), "good": onnx_models.add()}, toml)
    async with Loaded(tmp_path, isolation="device", warmup_s=1.0).running() as loaded:
        await loaded.until_state("good", "READY")
        assert loaded.get("endless").state == "FAILED"
        assert "warm-up" in loaded.get("endless").reason


@pytest.mark.parametrize("isolation", ["model", "device"])
async def test_a_dead_worker_comes_back(tmp_path: Path, isolation: str) -> None:
    repository(tmp_path, {"a": onnx_models.loop(), "b": onnx_models.add()})
    async with Loaded(tmp_path, isolation=isolation).running() as loaded:
        await loaded.settled()
        await kill(loaded, "a", infer(loaded, "a", [FOREVER]))
        with pytest.raises(ModelNotReady):
            await infer(loaded, "a", [ZERO])
        assert loaded.report("a").state == "LOADING"
        await loaded.settled()
        assert loaded.get("a").state == "READY"
        assert await soon(infer(loaded, "a", [ZERO]))
        assert loaded.history["b"].count("READY") == (1 if isolation == "model" else 2)


async def test_who_keeps_crashing_is_quarantined_and_who_only_waited_is_not(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": onnx_models.loop(), "good": onnx_models.simple()})
    async with Loaded(tmp_path, isolation="device", crash_limit=2).running() as loaded:
        for _ in range(2):
            await loaded.settled()
            running = infer(loaded, "bad", [FOREVER])
            await loaded.until_running("bad")
            waiting = infer(loaded, "good", pair())
            await kill(loaded, "bad", running)
            with pytest.raises(MeshError):
                await soon(waiting)
        bad = await loaded.until_state("bad", "QUARANTINED")
        assert "2 times within a minute" in bad.reason
        assert "SIGKILL" in bad.reason
        await loaded.until_state("good", "READY")
        assert await soon(infer(loaded, "good", pair()))
        assert loaded.instances.find("bad", "") is None


async def test_a_model_that_hangs_is_the_one_to_blame_though_its_caller_is_gone(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": onnx_models.loop(), "good": onnx_models.simple()})
    async with Loaded(tmp_path, isolation="device", crash_limit=1, hang_s=0.1).running() as loaded:
        await loaded.settled()
        running = infer(loaded, "bad", [FOREVER], left_ms=500)
        await loaded.until_running("bad")
        os.kill(loaded.runtime("bad").pid, signal.SIGSTOP)  # else the run that nobody wants would be ended early
        with pytest.raises(DeadlineExceeded):
            await soon(running)
        await loaded.until_state("bad", "QUARANTINED")
        await loaded.until_state("good", "READY")


async def test_workers_that_die_idle_are_nobodys_fault_where_several_models_share_one(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.simple()})
    async with Loaded(tmp_path, isolation="device", crash_limit=2).running() as loaded:
        for _ in range(3):
            await loaded.settled()
            await kill(loaded, "a")
        await loaded.settled()
        assert [i.state for i in loaded.instances.all()] == ["READY", "READY"]


@pytest.mark.parametrize("asked", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
async def test_a_gpu_request_on_a_box_without_one_fails_unless_the_cpu_is_allowed(tmp_path: Path, asked: str) -> None:
    toml = {"gpu": f'backends = ["{asked}"]\n'}
    repository(tmp_path, {"gpu": onnx_models.add(), "cpu": onnx_models.add()}, toml)
    async with Loaded(tmp_path, isolation="none").running() as loaded:
        await loaded.settled()
        assert loaded.get("gpu").state == "FAILED"
        assert asked in loaded.get("gpu").reason
        assert loaded.get("cpu").state == "READY"
    async with Loaded(tmp_path, isolation="none", allow_cpu=True).running() as loaded:
        await loaded.settled()
        gpu = loaded.get("gpu")
        assert gpu.state == "READY"
        assert gpu.reason.startswith(f"degraded: runs on onnxruntime-cpu, {asked} was asked for: this onnxruntime was")
        assert loaded.get("cpu").reason == ""


async def test_a_worker_that_cannot_be_started_is_tried_again_and_said(tmp_path: Path) -> None:
    repository(tmp_path, {"m": onnx_models.add()})
    async with Loaded(tmp_path).running() as loaded:
        with no_more_descriptors():
            await loaded.until_change(lambda: "cannot be started" in loaded.get("m").reason)
            assert loaded.get("m").state == "LOADING"
        await loaded.until_state("m", "READY")


async def test_a_worker_that_can_never_be_started_ends_in_quarantine(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.add()})
    async with Loaded(tmp_path, isolation="device", crash_limit=2).running() as loaded:
        with no_more_descriptors():
            await loaded.settled()
            assert [i.state for i in loaded.instances.all()] == ["QUARANTINED", "QUARANTINED"]
            assert "cannot be started" in loaded.get("a").reason


async def test_leaving_in_the_middle_of_loading_leaves_nothing_behind(tmp_path: Path) -> None:
    repository(tmp_path, {name: onnx_models.add() for name in "abc"})
    async with Loaded(tmp_path).running() as loaded:
        await loaded.until_change(lambda: "LOADING" in loaded.history.get("a", []))
    assert all(i.served.runtime is None for i in loaded.instances.all())


async def test_the_default_version_is_the_latest_that_can_be_served(tmp_path: Path) -> None:
    repository(tmp_path, {"m": onnx_models.add()}, {"m": 'versions = "all"\n'})
    onnx_models.save(onnx_models.add(), tmp_path / "m" / "10" / "model.onnx")
    onnx_models.save(b"garbage", tmp_path / "m" / "11" / "model.onnx")
    async with Loaded(tmp_path, isolation="none").running() as loaded:
        await loaded.settled()
        default = loaded.instances.find("m", "")
        assert default is not None
        assert default.identity.version == "10"
        assert [i.identity.version for i in loaded.instances.named("m")] == ["1", "10", "11"]
        assert loaded.instances.find("m", "11") is not None
        assert loaded.instances.find("m", "2") is None
        assert loaded.instances.find("other", "") is None


async def test_quarantine_ends_by_itself_after_a_time_that_doubles(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": onnx_models.add(), "good": onnx_models.add()})
    async with Loaded(tmp_path, crash_limit=1, quarantine_s=0.3).running() as loaded:
        waits = []
        for _ in range(2):
            await loaded.settled()
            loaded.kill("bad")
            bad = await loaded.until_state("bad", "QUARANTINED")
            assert bad.retry_at is not None
            waits.append(bad.retry_at - time.monotonic())
            await loaded.until_state("bad", "READY")
        assert waits[1] > 0.3 > waits[0]
        assert loaded.history["good"] == ["LOADING", "WARMING", "READY"]


async def test_loading_by_name_ends_a_quarantine_at_once(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": onnx_models.add()})
    async with Loaded(tmp_path, crash_limit=1, quarantine_s=600.0).running() as loaded:
        await loaded.settled()
        loaded.kill("bad")
        await loaded.until_state("bad", "QUARANTINED")
        await soon(loaded.control.load("bad"))
        assert loaded.get("bad").state == "READY"
        assert loaded.get("bad").retry_at is None
        loaded.kill("bad")
        assert (await loaded.until_state("bad", "QUARANTINED")).quarantines == 1  # the first one is forgiven


async def test_a_quarantined_model_holds_no_worker(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": onnx_models.add(), "good": onnx_models.add()})
    async with Loaded(tmp_path, crash_limit=1).running() as loaded:
        await loaded.settled()
        loaded.kill("bad")
        await loaded.until_state("bad", "QUARANTINED")
        good = loaded.runtime("good").pid
        await until(
            lambda: [c.pid for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE] == [good]
        )


async def test_several_instances_of_a_model_run_at_the_same_time(tmp_path: Path) -> None:
    repository(tmp_path, {"m": onnx_models.loop()}, {"m": "instances = 2\n"})
    async with Loaded(tmp_path, concurrency=2).running() as loaded:
        await loaded.settled()
        assert loaded.report("m").instances == 2
        endless = infer(loaded, "m", [FOREVER])
        await loaded.until_running("m")
        assert await soon(infer(loaded, "m", [ZERO]))  # beside the one that never ends
        endless.cancel()
        await soon(asyncio.wait({endless}))


async def test_leaving_while_a_worker_is_being_closed_leaves_no_process(tmp_path: Path) -> None:
    repository(tmp_path, {"bad": b"garbage"})
    before = psutil.Process().children()
    for _ in range(5):
        async with Loaded(tmp_path).running() as loaded:
            await loaded.until_state("bad", "FAILED")  # its worker goes now
        assert [child for child in psutil.Process().children() if child not in before] == []
