"""The OpenAPI document against the door that serves it: every route is in it, and schemathesis makes requests of it.

Not here: what answers mean (the other tests of doors).
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from mesh import http_pages, openapi
from mesh.cluster import Cluster
from tests import onnx_models
from tests.integration.doors import repository
from tests.unit.test_dataplane import serving

NOT_HERE = "/v2/cudasharedmemory/region/{region}/register"
"""Answers 501, which is no failure."""
LEFT_OUT = ("/infer_stream", "/load", "/unload", "/metrics")
"""Streams, what changes what is loaded (and is refused with 500, as Triton does), and what is no JSON."""


async def test_every_route_is_described() -> None:
    described = openapi.document("1")["paths"]
    async with serving() as doors:
        routes = [route for route in http_pages.pages(doors.dataplane).routes if isinstance(route, Route)]
    assert {route.path for route in routes} | {
        f"/v2/models/{{name}}{version}/{kind}"
        for version in ("", "/versions/{version}")
        for kind in ("infer", "infer_stream")
    } == set(described)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("openapi")
    models = repository(folder / "models", {"simple": onnx_models.simple()})
    environ = {"MESH_DISCOVERY__ENABLED": "false", "MESH_MODELS__ISOLATION": "none", "MESH_HTTP__SHARED_MEMORY": "true"}
    async with Cluster(folder / "run", agents=environ) as cluster:
        agent = await cluster.agent("described", models)
        await agent.until_ready()
        yield agent.url


def known(document: dict[str, Any]) -> dict[str, Any]:
    """The same for models and versions of which some are there."""
    for path in document["paths"].values():
        for parameter in path.get("parameters", ()):
            if parameter["name"] in ("name", "version"):
                there = {"name": ["simple", "nothing"], "version": ["1", "7"]}[parameter["name"]]
                parameter["schema"] = {"type": "string", "enum": there}
    return document


@pytest.mark.asyncio(loop_scope="module")
async def test_schemathesis_finds_nothing(url: str) -> None:
    await asyncio.to_thread(_run, url)


def _run(url: str) -> None:
    with urllib.request.urlopen(f"{url}/openapi.json") as answer:
        document = known(json.load(answer))
    schema = schemathesis.openapi.from_dict(document)
    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
    tried = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        if operation.path == NOT_HERE or operation.path.endswith(LEFT_OUT):
            continue

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            response = case.call(base_url=url, timeout=30)
            case.validate_response(response, checks=list(checks))

        ask()
    assert tried > 100
