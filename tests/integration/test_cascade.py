"""A small model on one box and a large one on another, as real processes on a real bus; the second one is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.client import Client
from mesh.cluster import Child, Cluster
from tests import onnx_models
from tests.instances import Loaded
from tests.integration.doors import Answer, Door, repository, until, until_served
from tests.scrape import Scrape

CASCADE = """
[cascade]
next = "large"
output = "probabilities"
threshold = 0.8
audit = 1.0
"""
SURE, UNSURE = [5.0, 0.0, 0.0], [0.5, 0.3, 0.0]
SMALL = {"model": "small", "version": "1"}


def asking(*rows: list[float], **parameters: Any) -> dict[str, Any]:
    inputs = [{"name": "X", "datatype": "FP32", "shape": [len(rows), 3], "data": [x for row in rows for x in row]}]
    return {"id": "7", "inputs": inputs, "parameters": {"timeout": 60_000_000} | parameters}


@dataclass
class Boxes:
    here: Door
    router: Door
    large: Child

    async def ask(self, *rows: list[float], door: Door | None = None, **parameters: Any) -> Answer:
        answer = await (door or self.here).infer("small", asking(*rows, **parameters))
        assert answer.status == 200, answer.body
        return answer

    async def scrape(self) -> Scrape:
        return Scrape((await self.here.get("/metrics")).body.decode())

    async def counted(self, metric: str, **labels: str) -> float:
        return (await self.scrape()).get(metric, **SMALL, **labels) or 0.0


@pytest.fixture
async def boxes(tmp_path: Path) -> AsyncIterator[Boxes]:
    small = repository(tmp_path / "small", {"small": onnx_models.classifier()}, {"small": CASCADE})
    large = repository(tmp_path / "large", {"large": onnx_models.classifier(10.0, shift=1)})
    environ = {"MESH_MODELS__ISOLATION": "none", "MESH_MODELS__THREADS": "1", "MESH_DISCOVERY__ENABLED": "false"}
    async with Cluster(tmp_path / "run", agents=environ) as cluster:
        children = await asyncio.gather(
            cluster.agent("box", small), cluster.agent("gpu", large, tier="cloud"), cluster.router()
        )
        await asyncio.gather(*(child.until_ready() for child in children))
        here, router = Door(children[0].address), Door(children[2].address)
        await until_served(here, "large")
        await until_served(router, "small")
        await until_served(router, "large")
        yield Boxes(here, router, children[1])


def told(answer: Answer) -> tuple[str, str, str]:
    return answer.headers["mesh-cascade"], answer.headers["mesh-node"], answer.headers["mesh-confidence"]


async def test_the_large_model_elsewhere_answers_where_the_small_one_is_not_sure(boxes: Boxes) -> None:
    sure = await boxes.ask(SURE)
    assert told(sure) == ("small", "box", "0.9867")
    assert sure.output("label").tolist() == [0]
    unsure = await boxes.ask(UNSURE)
    assert told(unsure) == ("large", "gpu", "0.4123")
    assert (unsure.json()["model_name"], unsure.json()["id"]) == ("small", "7")
    assert [o["name"] for o in unsure.json()["outputs"]] == ["probabilities", "label"]
    assert unsure.output("label").tolist() == [1]
    both = await boxes.ask(SURE, UNSURE)
    assert (told(both)[0], both.output("label").tolist()) == ("large", [1, 1])
    assert told(await boxes.ask(UNSURE, door=boxes.router)) == ("large", "gpu", "0.4123")
    plain = await boxes.ask(UNSURE, cascade=False)
    assert (plain.output("label").tolist(), "mesh-cascade" in plain.headers) == ([0], False)

    assert await boxes.counted("mesh_cascade_answers_total", answered="large") == 2
    assert await boxes.counted("mesh_cascade_answers_total", answered="small") == 1
    assert await boxes.counted("mesh_cascade_escalations_total", outcome="differed") == 2
    assert await boxes.counted("mesh_cascade_threshold_ratio") == 0.8

    async def audited() -> bool:
        return await boxes.counted("mesh_cascade_audits_total", outcome="differed") == 1

    await until(audited)
    assert await boxes.counted("mesh_cascade_agreement_ratio") == 0.0

    x = np.array([UNSURE], dtype=np.float32)
    async with Client(boxes.here.address, deadline_ms=60_000) as client:
        result = await client.infer("small", {"X": x}, outputs=["label"])
    assert (result["label"].tolist(), list(result.outputs), result.model) == ([1], ["label"], "small")
    assert (result.cascade, round(result.confidence or 0.0, 4)) == ("large", 0.4123)


async def test_answers_go_on_when_the_box_of_the_large_one_is_killed(boxes: Boxes) -> None:
    asked = 0

    async def callers() -> None:
        nonlocal asked
        while True:
            answer = await boxes.ask(UNSURE)
            asked += 1
            assert (told(answer)[:2], answer.output("label").tolist()) in [
                (("large", "gpu"), [1]),
                (("small", "box"), [0]),
            ]
            if killed.is_set() and told(answer)[0] == "small":
                return

    killed = asyncio.Event()
    tasks = [asyncio.ensure_future(callers()) for _ in range(4)]

    async def some_asked() -> bool:
        return asked >= 20

    await until(some_asked)
    await boxes.large.kill()
    killed.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert told(await boxes.ask(SURE)) == ("small", "box", "0.9867")
    found = await boxes.scrape()
    outcomes = {s["outcome"]: found.get("mesh_cascade_escalations_total", **s) for s in found.series(
        "mesh_cascade_escalations_total"
    )}  # fmt: skip
    fell_back = sum(count or 0.0 for outcome, count in outcomes.items() if outcome != "differed")
    assert fell_back >= 1
    assert (outcomes["differed"] or 0.0) + fell_back == asked
    failed = [s for s in found.series("mesh_requests_total") if s["outcome"] != "ok"]
    assert failed == []


async def test_a_model_without_the_declared_output_is_named(tmp_path: Path) -> None:
    toml = {
        "small": '[cascade]\nnext = "large"\noutput = "scores"',
        "other": '[cascade]\nnext = "large"\noutput = "label"',
    }
    folder = repository(tmp_path, dict.fromkeys(("small", "other"), onnx_models.classifier()), toml)
    async with Loaded(folder, isolation="none").running() as loaded:
        small = await loaded.until_state("small", "FAILED")
        assert "cascade.output: the model has no output 'scores', it has ['probabilities', 'label']" in small.reason
        other = await loaded.until_state("other", "FAILED")
        assert "cascade.output: output 'label' is INT64" in other.reason
