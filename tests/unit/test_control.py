"""Which models a node serves: new before old, and Triton's three ways of model control, on real models and workers."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from edge.models import Models
from mesh.deadline import Deadline
from mesh.errors import ConfigError, ModelNotFound, ModelRejected
from mesh.repository import IndexEntry
from mesh.values import ModelRef
from tests import onnx_models
from tests.contract.tensors import int64, pair
from tests.instances import Loaded
from tests.integration.doors import repository
from tests.nats import soon

POLL: dict[str, Any] = {"control": "poll", "poll_s": 0.05}


def put(folder: Path, model: bytes, version: str = "1", name: str = "m") -> None:
    """As a careful operator does: whole, and under its name only then."""
    draft = onnx_models.save(model, folder / f".{name}-{version}")
    (folder / name / version).mkdir(parents=True, exist_ok=True)
    draft.replace(folder / name / version / "model.onnx")


def infer(loaded: Loaded, version: str = "", inputs: Any = None) -> asyncio.Future[Any]:
    found = loaded.instances.find("m", version)
    assert found is not None
    return asyncio.ensure_future(
        loaded.instances.executor.infer(found.served, inputs or pair(), (), Deadline.after_ms(60_000), 0)
    )


def versions(loaded: Loaded) -> list[tuple[str, str]]:
    return [(i.identity.version, i.state) for i in loaded.instances.named("m")]


@pytest.mark.parametrize("isolation", ["model", "device", "none"])
async def test_a_new_version_takes_over_only_when_it_is_ready(tmp_path: Path, isolation: str) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path, isolation=isolation, **POLL).running() as loaded:
        await loaded.settled()
        old = loaded.get("m")
        put(tmp_path, onnx_models.simple(), "2")
        await loaded.until_change(lambda: ("2", "LOADING") in versions(loaded))
        assert versions(loaded)[0] == ("1", "READY")
        assert loaded.instances.find("m", "") is old
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])
        assert loaded.seen["m/1"] == ["LOADING", "WARMING", "READY", "DRAINING"]
        assert old.served.runtime is None
        assert await soon(infer(loaded))


@pytest.mark.parametrize("isolation", ["model", "device"])
async def test_a_bad_new_version_leaves_the_old_one_serving(tmp_path: Path, isolation: str) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path, isolation=isolation, **POLL).running() as loaded:
        await loaded.settled()
        for bad in (b"garbage", onnx_models.gather()):  # the second one loads, and fails its warm-up
            (tmp_path / "m" / "model.toml").write_text("[warmup]\nI = { shape = [1], value = 99 }\n")
            put(tmp_path, bad, "2")
            await loaded.until_change(lambda: ("2", "FAILED") in versions(loaded))
            await looks(loaded, 3)
            assert versions(loaded) == [("1", "READY"), ("2", "FAILED")]
            assert await soon(infer(loaded))
            shutil.rmtree(tmp_path / "m" / "2")
            (tmp_path / "m" / "model.toml").unlink()
            await loaded.until_change(lambda: versions(loaded) == [("1", "READY")])


async def looks(loaded: Loaded, count: int) -> None:
    """Wait for some looks at the repository."""
    for _ in range(count):
        await asyncio.sleep(loaded.settings.poll_s)


async def test_other_bytes_under_the_same_version_take_over_when_ready(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path, **POLL).running() as loaded:
        await loaded.settled()
        old = loaded.get("m")
        put(tmp_path, onnx_models.simple(metadata={"made": "anew"}))
        await loaded.until_change(lambda: len(loaded.instances.named("m")) == 2)
        assert loaded.instances.find("m", "1") is old
        await loaded.until_change(lambda: versions(loaded) == [("1", "READY")])
        new = loaded.get("m")
        assert new is not old
        assert new.identity.digest != old.identity.digest
        assert loaded.instances.at(old.identity) is None
        assert await soon(infer(loaded))


async def test_what_is_asked_of_an_old_version_is_answered_before_it_goes(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.loop())
    async with Loaded(tmp_path, **POLL).running() as loaded:
        await loaded.settled()
        running = infer(loaded, "1", [int64("N", 3_000_000)])
        await loaded.until_running("m")
        put(tmp_path, onnx_models.loop(), "2")
        await loaded.until_change(lambda: ("1", "DRAINING") in versions(loaded))
        (answer,) = await soon(running)
        assert bytes(answer.whole) == (3_000_000).to_bytes(8, "little")
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])


async def test_polling_follows_models_that_come_change_and_go(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.add(), name="stays")
    async with Loaded(tmp_path, **POLL).running() as loaded:
        await loaded.settled()
        stays = loaded.get("stays")
        put(tmp_path, onnx_models.simple())
        await loaded.until_change(lambda: versions(loaded) == [("1", "READY")])
        (tmp_path / "m" / "model.toml").write_text("deadline_ms = 7\n")
        await loaded.until_change(lambda: loaded.get("m").stored.config.deadline_ms == 7.0)
        shutil.rmtree(tmp_path / "m")
        await loaded.until_change(lambda: versions(loaded) == [])
        assert loaded.get("stays") is stays
        assert stays.loads == 1


async def test_a_repository_that_cannot_be_read_for_a_while_unloads_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    put(folder, onnx_models.simple())
    async with Loaded(folder, **POLL).running() as loaded:
        await loaded.settled()
        folder.rename(tmp_path / "away")
        await looks(loaded, 5)
        assert versions(loaded) == [("1", "READY")]
        (tmp_path / "away").rename(folder)
        put(folder, onnx_models.simple(), "2")
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])


async def test_without_polling_the_disk_changes_nothing_until_asked(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path).running() as loaded:
        await loaded.settled()
        put(tmp_path, onnx_models.simple(), "2")
        assert versions(loaded) == [("1", "READY")]
        await soon(loaded.control.load("m"))
        assert loaded.instances.find("m", "") is loaded.instances.find("m", "2")
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])


async def test_explicit_control_loads_what_it_is_told(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "b": onnx_models.add(), "m": onnx_models.simple()})
    async with Loaded(tmp_path, control="explicit", load=("b",)).running() as loaded:
        await loaded.settled()
        assert [i.name for i in loaded.instances.all()] == ["b/1"]
        await soon(loaded.control.load("m"))
        assert versions(loaded) == [("1", "READY")]
        assert await soon(loaded.control.index()) == [
            IndexEntry("a", "", "UNAVAILABLE", "it is not loaded"),
            IndexEntry("b", "1", "READY"),
            IndexEntry("m", "1", "READY"),
        ]
        await soon(loaded.control.unload("m"))
        assert versions(loaded) == []
        with pytest.raises(ModelNotFound, match="not loaded"):
            await loaded.control.unload("m")
        with pytest.raises(ModelNotFound, match="no model 'nothing'"):
            await soon(loaded.control.load("nothing"))
        await soon(loaded.control.load("m"))
        assert await soon(infer(loaded))


async def test_explicit_control_may_load_all_and_names_what_is_missing(tmp_path: Path) -> None:
    repository(tmp_path, {"a": onnx_models.add(), "m": onnx_models.simple()})
    async with Loaded(tmp_path, control="explicit", load=("*",)).running() as loaded:
        await loaded.settled()
        assert [i.name for i in loaded.instances.all()] == ["a/1", "m/1"]
    with pytest.raises(ConfigError, match=r"models\.load: there is no model 'z'"):
        async with Loaded(tmp_path, control="explicit", load=("a", "z")).running():
            pass


async def test_a_load_that_fails_says_why_and_can_be_tried_again(tmp_path: Path) -> None:
    put(tmp_path, b"garbage")
    async with Loaded(tmp_path, control="explicit").running() as loaded:
        with pytest.raises(ModelRejected, match=r"m/1 cannot be served: .*not a well-formed"):
            await soon(loaded.control.load("m"))
        (entry,) = await soon(loaded.control.index())
        assert (entry.state, entry.reason.split(":")[0]) == ("UNAVAILABLE", "FAILED")
        put(tmp_path, onnx_models.simple())
        await soon(loaded.control.load("m"))
        assert versions(loaded) == [("1", "READY")]


async def test_what_was_unloaded_by_name_stays_so_while_polling_until_it_is_another(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path, **POLL).running() as loaded:
        await loaded.settled()
        await soon(loaded.control.unload("m"))
        await looks(loaded, 4)
        assert versions(loaded) == []
        put(tmp_path, onnx_models.simple(), "2")
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])


async def test_a_file_that_changed_on_disk_is_not_served_under_the_old_digest(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path).running() as loaded:
        await loaded.settled()
        put(tmp_path, onnx_models.add())
        assert await soon(infer(loaded))
        loaded.kill("m")
        failed = await loaded.until_state("m", "FAILED")
        assert "is not the one that was read" in failed.reason
        assert loaded.instances.find("m", "") is None


async def test_a_request_that_was_on_its_way_to_the_old_version_is_still_answered(tmp_path: Path) -> None:
    put(tmp_path, onnx_models.simple())
    async with Loaded(tmp_path, parts={"linger_s": 1.0}, **POLL).running() as loaded:
        await loaded.settled()
        models = Models(loaded.instances)
        old = models.identity(ModelRef("m"))
        assert old is not None
        put(tmp_path, onnx_models.simple(), "2")
        await loaded.until_change(lambda: ("1", "DRAINING") in versions(loaded))
        as_routed = models.load(old)
        assert as_routed is not None
        assert as_routed.state == "READY"
        assert [m.state for m in models.held("m")] == ["DRAINING", "READY"]  # which is what others are told
        assert await soon(infer(loaded, "1"))
        await loaded.until_change(lambda: versions(loaded) == [("2", "READY")])
