"""MQTT clients (paho) at a real nats-server's listener, and an agent behind it: what a camera or a PLC would do.

Not here: topics alone (``tests.unit.test_mqtt_topics``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.nats_server import NatsServer, free_port
from tests import onnx_models
from tests.integration.doors import agent, repository, router
from tests.mqtt import Device

TOKEN = "a token of the bus"
ROW = [[float(n) for n in range(16)]]
GOOD: dict[str, Any] = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": ROW}]}
DOUBLED = [2.0 * n for n in range(16)]


def shop(port: int, name: str, *, clean: bool = True) -> Device:
    return Device(port, name, "mesh/shop/result/#", TOKEN, clean=clean)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[tuple[int, str]]:
    number = await asyncio.to_thread(free_port, "127.0.0.1")
    async with NatsServer(token=TOKEN, mqtt=f"127.0.0.1:{number}", max_payload=1 << 20) as server:
        yield number, server.url


@pytest.fixture
def models(tmp_path: Path) -> Path:
    made = {
        "add": onnx_models.add(),
        "with.dot": onnx_models.add(),
        "simple": onnx_models.simple(),
        "text": onnx_models.identity("BYTES"),
        "sum": onnx_models.running_sum(),
    }
    toml = {"sum": '[[sequence.state]]\ninput = "STATE"\noutput = "STATE_OUT"\n'}
    return repository(tmp_path / "models", made, toml)


@pytest.fixture
async def device(port: tuple[int, str], models: Path) -> AsyncIterator[Device]:
    number, url = port
    async with at_shop(models, url), shop(number, "camera-1") as device:
        yield device


def at_shop(models: Path, url: str, name: str = "edge-1") -> Any:
    return _connected(agent(models, nats={"url": url, "token": TOKEN}, node={"name": name}, site={"name": "shop"}))


@contextlib.asynccontextmanager
async def _connected(opening: Any) -> AsyncIterator[Any]:
    async with opening as door:
        await _until_on_bus(door)
        yield door


async def _until_on_bus(door: Any) -> None:
    while "mesh_bus_connected 1.0" not in (await door.get("/metrics")).body.decode():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("model", ["add", "with.dot"])
async def test_json_in_json_out(device: Device, model: str, qos: int) -> None:
    topic, result = await device.ask(f"mesh/shop/infer/{model}/shelf-7", GOOD, qos)
    assert topic == f"mesh/shop/result/{model}/shelf-7"
    assert (result["model_name"], result["id"]) == (model, "shelf-7")
    assert np.ravel(result["outputs"][0]["data"]).tolist() == DOUBLED
    topic, _ = await device.ask(f"mesh/shop/infer/{model}", GOOD, qos)
    assert topic == f"mesh/shop/result/{model}"


async def test_bytes_are_the_one_input(device: Device) -> None:
    _, result = await device.ask("mesh/shop/infer/add", np.array(ROW, np.float32).tobytes())
    assert np.ravel(result["outputs"][0]["data"]).tolist() == DOUBLED
    _, result = await device.ask("mesh/shop/infer/text", b"any text at all")
    assert result["outputs"][0]["data"] == ["any text at all"]
    for model, body in (("simple", b"\x00" * 64), ("add", b"\x00" * 63), ("add", b"")):
        _, result = await device.ask(f"mesh/shop/infer/{model}", body)
        assert result["code"] == "invalid_request", result


async def test_results_go_where_the_request_says_below_the_sites_results_only(device: Device) -> None:
    named = GOOD | {"parameters": {"mesh_result": "mesh/shop/result/till/3.b"}}
    topic, result = await device.ask("mesh/shop/infer/add/x", named)
    assert topic == "mesh/shop/result/till/3.b"
    assert "outputs" in result
    wrong: tuple[Any, ...] = (
        "mesh/shop/infer/add", "mesh/other/result/x", "mesh/shop/result", "mesh/shop/result/#", "mesh/shop/result/+/a",
        "$SYS/x", "mesh/shop/result/*", "mesh/shop/result/>", "mesh/shop/result//x", "mesh/shop/result/a b", 5,
        "x" * 600,
    )  # fmt: skip
    for outside in wrong:
        named = GOOD | {"parameters": {"mesh_result": outside}}
        topic, result = await device.ask("mesh/shop/infer/add/x", named)
        assert (topic, result["code"]) == ("mesh/shop/result/add/x", "invalid_request"), outside


@pytest.mark.parametrize(
    "body", [b"{", b'{"inputs": 5}', b"{}", b'{"inputs":[{"name":"Y","datatype":"FP32","shape":[1],"data":[1]}]}']
)
async def test_what_is_wrong_is_said_at_the_result_topic(device: Device, body: bytes) -> None:
    topic, result = await device.ask("mesh/shop/infer/add/7", body)
    assert topic == "mesh/shop/result/add/7"
    assert (result["code"], result["model"], result["id"]) == ("invalid_request", "add", "7")
    _, result = await device.ask("mesh/shop/infer/add/7", GOOD)
    assert "outputs" in result


@pytest.mark.parametrize("where", ["add/7/too/deep", "a*b", "*", ">", "a>b", "/x", "add/"])
async def test_bad_topics_are_answered_as_near_as_can_be_told(device: Device, where: str) -> None:
    topic, result = await device.ask(f"mesh/shop/infer/{where}", GOOD)
    assert topic == "mesh/shop/result/error"
    assert result["code"] == "invalid_request"


async def test_an_unknown_model_and_another_site(device: Device) -> None:
    _, result = await device.ask("mesh/shop/infer/nothing", GOOD)
    assert result["code"] == "model_not_found"
    device.send("mesh/elsewhere/infer/add", GOOD)
    topic, _ = await device.ask("mesh/shop/infer/add", GOOD)
    assert topic == "mesh/shop/result/add"
    assert device.silent


async def test_a_sequence_by_topic(device: Device) -> None:
    total = 0
    for number in range(1, 6):
        tensor = {"name": "INPUT", "datatype": "INT64", "shape": [1, 1], "data": [number]}
        parameters = {"sequence_id": 5, "sequence_start": number == 1, "sequence_end": number == 5}
        _, result = await device.ask("mesh/shop/infer/sum/meter-1", {"inputs": [tensor], "parameters": parameters}, 1)
        assert "outputs" in result, result
        total += number
        assert np.ravel(result["outputs"][0]["data"]).tolist() == [total], result


async def test_a_result_over_the_bus_limit_is_an_error(device: Device) -> None:
    """The JSON of a tensor that fits as bytes does not always."""
    _, result = await device.ask("mesh/shop/infer/add", np.ones(16 * 12_000, np.float32).tobytes())
    assert result["code"] in ("invalid_request", "payload_too_large")
    big = {"inputs": [{"name": "INPUT", "datatype": "BYTES", "shape": [1], "data": ["x" * 600_000]}]}
    _, result = await device.ask("mesh/shop/infer/text", big)
    assert "outputs" in result


async def test_a_device_that_comes_back_and_a_request_that_is_retained(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with shop(number, "camera-2", clean=False) as device:
        async with at_shop(models, url):
            await device.ask("mesh/shop/infer/add/1", GOOD, 1)
            await device.reconnect()
            topic, _ = await device.ask("mesh/shop/infer/add/2", GOOD, 1)
            assert topic.endswith("/2")
            device.send("mesh/shop/infer/add/3", GOOD, 1, retain=True)
            topic, _ = await device.next()
            assert topic.endswith("/3")
        async with at_shop(models, url, "edge-2"):  # what is retained is for MQTT clients, not run again
            topic, _ = await device.ask("mesh/shop/infer/add/4", GOOD, 1)
            assert topic.endswith("/4")
            assert device.silent


async def test_of_many_nodes_one_answers(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with (
        at_shop(models, url, "edge-1"),
        at_shop(models, url, "edge-2"),
        _connected(router({"url": url, "token": TOKEN})),
        shop(number, "camera-3") as device,
    ):
        for index in range(40):
            device.send(f"mesh/shop/infer/add/{index}", GOOD, index % 2)
        heard = sorted([(await device.next())[0] for _ in range(40)])
        assert heard == sorted(f"mesh/shop/result/add/{index}" for index in range(40))
        await device.ask("mesh/shop/infer/add/last", GOOD)
        assert device.silent
