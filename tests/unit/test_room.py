"""Room for models on a box whose memory a test dictates: waiting, refusing by name, evicting, and coming back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge.models import Models
from edge.preflight import MIB
from mesh.deadline import Deadline
from mesh.errors import DeadlineExceeded, ModelRejected
from mesh.messages import Gauges, ModelLoad
from mesh.oip.request import InferRequest
from mesh.oip.tensor import Tensor
from mesh.values import ModelIdentity, ModelRef
from tests import onnx_models
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

WORKER = 100 * MIB


class Box:
    """A box of ``total`` bytes on which every worker takes as much; every reading is a new one."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.loaded: Loaded | None = None

    def gauges(self) -> Gauges:
        there = getattr(self.loaded, "instances", None)  # not before it runs
        instances = [] if there is None else there.all()
        return Gauges(
            memory_used_bytes=WORKER * sum(i.served.runtime is not None for i in instances),
            memory_total_bytes=self.total,
        )


def on(box: Box, folder: Path, **settings: Any) -> Loaded:
    box.loaded = Loaded(folder, parts={"gauges": box.gauges}, reserve_bytes=0, **settings)
    return box.loaded


def request(name: str) -> InferRequest:
    tensor = Tensor("X", "FP32", (1, 16), bytes(64))
    return InferRequest(
        model=name, version="", id="", parameters={}, inputs=(tensor,), outputs=(), binary_default=True, wire=None
    )


async def ask(models: Models, name: str, left_ms: float = 60_000.0) -> None:
    await models.infer(request(name), identity(models, name), Deadline.after_ms(left_ms))


def identity(models: Models, name: str) -> ModelIdentity:
    found = models.identity(ModelRef(name))
    assert found is not None
    return found


def report(models: Models, name: str) -> ModelLoad:
    (only,) = models.held(name)
    return only


async def measured(loaded: Loaded, *names: str) -> None:
    """Load models once, so that it is known what they take: less than the guess, more than 10 MiB."""
    for name in names:
        await soon(loaded.control.load(name))
        await soon(loaded.control.unload(name))


async def test_what_does_not_fit_is_refused_by_name_and_the_others_serve(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.add(), "c": onnx_models.add()})
    async with on(Box(210 * MIB), tmp_path).running() as loaded:
        await loaded.settled()
        assert [i.state for i in loaded.instances.all()].count("READY") == 2
        (refused,) = [i for i in loaded.instances.all() if i.state == "FAILED"]
        assert "it needs about 96 MiB of memory, 10 MiB are free beyond the reserve" in refused.reason
        assert loaded.history[refused.identity.name] == ["LOADING", "FAILED"]
        with pytest.raises(ModelRejected, match="MiB are free"):
            await soon(loaded.control.load(refused.identity.name))


async def test_what_was_refused_is_tried_again_by_itself(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add()})
    box = Box(50 * MIB)
    async with on(box, tmp_path, quarantine_s=0.1).running() as loaded:
        await loaded.until_state("a", "FAILED")
        box.total = 500 * MIB
        await loaded.until_state("a", "READY")


async def test_the_least_recently_asked_is_evicted_and_comes_back_when_asked(tmp_path: Path) -> None:
    repository(tmp_path, {name: onnx_models.add() for name in "abc"})
    async with on(Box(210 * MIB), tmp_path, evict=True, control="explicit").running() as loaded:
        await measured(loaded, "c")
        await soon(loaded.control.load("a"))
        await soon(loaded.control.load("b"))
        models = Models(loaded.instances)
        await soon(ask(models, "b"))
        await soon(ask(models, "a"))
        await soon(loaded.control.load("c"))
        assert [i.state for i in loaded.instances.all()] == ["READY", "DRAINING", "READY"]
        gone = report(models, "b")
        assert gone.reason == "evicted to make room for c/1; a request brings it back"
        assert gone.memory_bytes is None
        assert models.coming() == ()
        as_routed = models.load(identity(models, "b"))
        assert as_routed is not None
        assert (as_routed.state, as_routed.service_ms > gone.service_ms) == ("READY", True)
        (entry,) = [e for e in await loaded.control.index() if e.name == "b"]
        assert entry.state == "UNAVAILABLE"
        await soon(ask(models, "c"))
        await soon(ask(models, "b"))
        assert [report(models, name).state for name in "abc"] == ["DRAINING", "READY", "READY"]
        await soon(loaded.control.load("a"))
        assert [report(models, name).state for name in "abc"] == ["READY", "READY", "DRAINING"]


async def test_who_cannot_wait_for_an_evicted_model_is_told_at_its_deadline(tmp_path: Path) -> None:
    repository(tmp_path, {name: onnx_models.add() for name in "ab"})
    async with on(Box(110 * MIB), tmp_path, evict=True, control="explicit").running() as loaded:
        await measured(loaded, "b")
        await soon(loaded.control.load("a"))
        await soon(loaded.control.load("b"))
        models = Models(loaded.instances)
        with pytest.raises(DeadlineExceeded, match="being loaded again"):
            await soon(ask(models, "a", left_ms=1.0))
        await loaded.until_state("a", "READY")  # it was asked for
        assert report(models, "b").state == "DRAINING"


async def test_a_busy_model_is_not_evicted(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.add()})
    async with on(Box(110 * MIB), tmp_path, evict=True, control="explicit").running() as loaded:
        await measured(loaded, "b")
        await soon(loaded.control.load("a"))
        loaded.get("a").served.in_flight += 1
        with pytest.raises(ModelRejected, match="MiB are free"):
            await soon(loaded.control.load("b"))
        loaded.get("a").served.in_flight -= 1
        await soon(loaded.control.load("b"))


async def test_a_measured_footprint_is_remembered_and_reported(tmp_path: Path) -> None:
    folder = repository(tmp_path / "models", {"a": onnx_models.add()})
    (tmp_path / "state").mkdir()
    async with Loaded(folder, parts={"folder": tmp_path / "state"}).running() as loaded:
        await loaded.settled()
        measured = loaded.report("a").memory_bytes
        assert measured is not None
        assert measured > 10 * MIB
    box = Box(measured - 1)
    parts = {"folder": tmp_path / "state", "gauges": box.gauges}
    async with Loaded(folder, parts=parts, reserve_bytes=0).running() as loaded:
        failed = await loaded.until_state("a", "FAILED")
        assert f"needs about {measured / MIB:.0f} MiB" in failed.reason


async def test_a_box_whose_readings_do_not_come_loads_all_the_same(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add()})
    old = Gauges()
    async with Loaded(tmp_path, parts={"gauges": lambda: old}).running() as loaded:
        await loaded.until_state("a", "READY")
        await asyncio.sleep(0)
