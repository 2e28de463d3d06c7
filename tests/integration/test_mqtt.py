"""MQTT clients (paho) at a real nats-server's listener, and an agent behind it: what a camera or a PLC would do.

Not here: topics alone (``tests.unit.test_mqtt_topics``).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh import mqtt_door
from mesh.nats_bus import NatsBus, NatsOptions
from mesh.nats_server import NatsServer
from tests import onnx_models
from tests.integration.doors import agent, repository, router
from tests.mqtt import Device
from tests.nats import PATIENCE_S, Heard, soon

ROOT = Path(__file__).parents[2]
TOKEN = "a token of the bus"
MAX_PAYLOAD = 1 << 20
ROW = [[float(n) for n in range(16)]]
GOOD: dict[str, Any] = {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 16], "data": ROW}]}
DOUBLED = [2.0 * n for n in range(16)]


def shop(port: int, name: str, *, clean: bool = True) -> Device:
    return Device(port, name, "mesh/shop/result/#", TOKEN, clean=clean)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[tuple[int, str]]:
    async with NatsServer(token=TOKEN, mqtt="127.0.0.1:0", max_payload=MAX_PAYLOAD) as server:
        yield port_of(server), server.url


def port_of(server: NatsServer) -> int:
    return int(server.mqtt.rpartition(":")[2])


@pytest.fixture
def models(tmp_path: Path) -> Path:
    made = {
        "add": onnx_models.add(),
        "with.dot": onnx_models.add(),
        "simple": onnx_models.simple(),
        "text": onnx_models.identity("BYTES"),
        "picture": onnx_models.identity("UINT8", (1, 64)),
        "sum": onnx_models.running_sum(),
    }
    toml = {"sum": '[[sequence.state]]\ninput = "STATE"\noutput = "STATE_OUT"\n'}
    return repository(tmp_path / "models", made, toml)


@pytest.fixture
async def device(port: tuple[int, str], models: Path) -> AsyncIterator[Device]:
    number, url = port
    async with at_shop(models, url), shop(number, "camera-1") as device:
        yield device


def at_shop(models: Path, url: str, name: str = "edge-1", /, **groups: Any) -> Any:
    nats = {"url": url, "token": TOKEN}
    return _connected(agent(models, nats=nats, node={"name": name}, site={"name": "shop"}, **groups))


@contextlib.asynccontextmanager
async def _connected(opening: Any) -> AsyncIterator[Any]:
    async with opening as door:
        await _until_on_bus(door)
        yield door


async def _until_on_bus(door: Any) -> None:
    while "mesh_bus_connected 1.0" not in (await door.get("/metrics")).body.decode():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("qos", [0, 1, 2])
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


@pytest.mark.parametrize("begins", [b"{", b"{{{", b"\n {", b'{"\xff', b" \t{~}"])
async def test_a_picture_may_begin_like_json(device: Device, begins: bytes) -> None:
    picture = begins.ljust(64, b"{")
    _, result = await device.ask("mesh/shop/infer/picture", picture)
    assert bytes(result["outputs"][0]["data"]) == picture


@pytest.mark.parametrize("body", ["{", " { ", "{'inputs': 1}", "{inputs:[1]}", '\n{"inputs"', "{}", '{"ä": 1}'])
async def test_what_was_meant_as_json_is_not_run_as_bytes(device: Device, body: str) -> None:
    _, result = await device.ask("mesh/shop/infer/text", body.encode())
    assert result["code"] == "invalid_request"


async def test_results_go_where_the_request_says_below_the_sites_results_only(device: Device) -> None:
    named = GOOD | {"parameters": {"mesh_result": "mesh/shop/result/till/3.b"}}
    topic, result = await device.ask("mesh/shop/infer/add/x", named)
    assert topic == "mesh/shop/result/till/3.b"
    assert "outputs" in result
    named = GOOD | {"parameters": {"mesh_result": "mesh/shop/result/.a/b..c/d./ü"}}
    topic, _ = await device.ask("mesh/shop/infer/add/x", named)
    assert topic == "mesh/shop/result/.a/b..c/d./ü"
    wrong: tuple[Any, ...] = (
        "mesh/shop/infer/add", "mesh/other/result/x", "mesh/shop/result", "mesh/shop/result/#", "mesh/shop/result/+/a",
        "$SYS/x", "mesh/shop/result/a/", "mesh/shop/result/*", "mesh/shop/result/>", "mesh/shop/result//x",
        "mesh/shop/result/a b", 5,
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


@pytest.mark.parametrize(
    "where",
    ["add/7/too/deep", "a*b", "*", ">", "a>b", "/x", "add/", "add/*", "add/>", "add/$x", "add/a\x0bb", "add/a\x1fb",
     "add/" + "x" * 5_000, "add/" + "." * 2_000, "x" * 60_000],
)  # fmt: skip
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


async def test_a_numbered_step_that_is_sent_again_is_not_stepped_again(device: Device) -> None:
    """What QoS 1 does when an acknowledgement is lost."""
    for number, total in ((1, 1), (1, 1), (2, 3), (2, 3), (2, 3), (3, 6)):
        tensor = {"name": "INPUT", "datatype": "INT64", "shape": [1, 1], "data": [number]}
        parameters = {"sequence_id": 6, "sequence_start": number == 1, "mesh_step": number}
        _, result = await device.ask("mesh/shop/infer/sum/meter-1", {"inputs": [tensor], "parameters": parameters}, 1)
        assert np.ravel(result["outputs"][0]["data"]).tolist() == [total], result


async def test_sequences_of_two_devices_do_not_meet(device: Device) -> None:
    def step(number: int, *, start: bool = False) -> dict[str, Any]:
        tensor = {"name": "INPUT", "datatype": "INT64", "shape": [1, 1], "data": [number]}
        return {"inputs": [tensor], "parameters": {"sequence_id": 1, "sequence_start": start}}

    await device.ask("mesh/shop/infer/sum/one", step(1, start=True))
    await device.ask("mesh/shop/infer/sum/two", step(100, start=True))
    _, result = await device.ask("mesh/shop/infer/sum/one", step(2))
    assert np.ravel(result["outputs"][0]["data"]).tolist() == [3]
    _, result = await device.ask("mesh/shop/infer/sum/three", step(2))
    assert result["code"] == "sequence_unknown"


async def test_a_result_over_the_bus_limit_is_an_error(device: Device) -> None:
    """In JSON these are six times as many."""
    topic, result = await device.ask("mesh/shop/infer/text/7", b"\x01" * (MAX_PAYLOAD // 4))
    assert topic == "mesh/shop/result/text/7"
    assert (result["code"], result["model"], result["id"]) == ("payload_too_large", "text", "7")
    _, result = await device.ask("mesh/shop/infer/text/7", b"x" * (MAX_PAYLOAD - 4096))
    assert len(result["outputs"][0]["data"][0]) == MAX_PAYLOAD - 4096


async def test_a_request_over_the_bus_limit_costs_the_device_its_connection_and_nobody_else(
    port: tuple[int, str], models: Path
) -> None:
    number, url = port
    async with at_shop(models, url), shop(number, "large") as large, shop(number, "other") as other:
        async with large.again():
            large.send("mesh/shop/infer/text", bytes(2 * MAX_PAYLOAD))
        await other.ask("mesh/shop/infer/add/1", GOOD)
        topic, _ = await large.next()
        assert topic == "mesh/shop/result/add/1"


async def test_json_over_the_limit_is_refused_before_it_is_read(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with at_shop(models, url, mqtt={"max_json_bytes": 1024}), shop(number, "camera-4") as device:
        _, result = await device.ask("mesh/shop/infer/add", b'{"' + b"x" * 1024)
        assert result["code"] == "payload_too_large"
        _, result = await device.ask("mesh/shop/infer/text", b"x" * 2048)
        assert "outputs" in result
        _, result = await device.ask("mesh/shop/infer/add", GOOD)
        assert "outputs" in result


async def test_what_nobody_can_take_in_time_is_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as most:
        most.setattr(mqtt_door, "MOST_REQUESTS", 0)
        _, result = await device.ask("mesh/shop/infer/add/7", GOOD)
        assert (result["code"], result["model"], result["id"]) == ("overloaded", "add", "7")
    with monkeypatch.context() as most:
        most.setattr(mqtt_door, "MOST_BYTES", 100)
        _, result = await device.ask("mesh/shop/infer/add/7", GOOD)
        assert result["code"] == "overloaded"
        _, result = await device.ask("mesh/shop/infer/add/7", bytes(64))
        assert "outputs" in result
    _, result = await device.ask("mesh/shop/infer/add/7", GOOD)
    assert "outputs" in result


async def test_what_the_door_refuses_is_counted(
    port: tuple[int, str], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, url = port
    async with at_shop(models, url, mqtt={"max_json_bytes": 1024}) as door, shop(number, "camera-8") as device:
        await device.ask("mesh/shop/infer/add/a*b", GOOD)
        await device.ask("mesh/shop/infer/add", GOOD | {"parameters": {"mesh_result": "elsewhere"}})
        await device.ask("mesh/shop/infer/add", b'{"inputs": [' + b"1," * 1024)
        await device.ask("mesh/shop/infer/add", b"{}")
        with monkeypatch.context() as most:
            most.setattr(mqtt_door, "MOST_REQUESTS", 0)
            await device.ask("mesh/shop/infer/add/7", GOOD)
        lines = (await door.get("/metrics")).body.decode().splitlines()
        failed = {code: float(line.rpartition(" ")[2]) for line in lines if (code := failure(line))}
        assert failed == {"invalid_request": 3.0, "payload_too_large": 1.0, "overloaded": 1.0}


def failure(line: str) -> str:
    """The outcome of a line that counts failed requests; empty for any other."""
    found = re.match(r'mesh_requests_total\{.*outcome="((?!ok")\w+)"', line)
    return found[1] if found is not None else ""


async def test_more_than_a_queue_takes_is_answered_too(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with at_shop(models, url, models={"queue_limit": 1}), shop(number, "flood") as device:
        for index in range(300):
            device.send(f"mesh/shop/infer/add/{index}", GOOD)
        results = [await device.next() for _ in range(300)]
    assert {topic for topic, _ in results} == {f"mesh/shop/result/add/{index}" for index in range(300)}
    assert {result.get("code", "answered") for _, result in results} <= {"answered", "overloaded"}


async def test_each_answer_of_a_stream_is_a_message(port: tuple[int, str], models: Path) -> None:
    number, url = port
    (models / "repeat_int32").symlink_to(ROOT / "tests" / "models" / "triton" / "repeat_int32")
    numbers = [
        {"name": "IN", "datatype": "INT32", "shape": [3], "data": [7, 8, 9]},
        {"name": "DELAY", "datatype": "UINT32", "shape": [3], "data": [0, 0, 0]},
        {"name": "WAIT", "datatype": "UINT32", "shape": [1], "data": [0]},
    ]
    async with at_shop(models, url), shop(number, "camera-5") as device:
        device.send("mesh/shop/infer/repeat_int32/7", {"inputs": numbers})
        heard = [await device.next() for _ in numbers]
        assert [topic for topic, _ in heard] == ["mesh/shop/result/repeat_int32/7"] * 3
        assert [np.ravel(result["outputs"][0]["data"]).tolist() for _, result in heard] == [[7], [8], [9]]


async def test_a_device_that_comes_back_and_a_request_that_is_retained(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with shop(number, "camera-2", clean=False) as device:
        async with at_shop(models, url):
            await device.sent("mesh/shop/infer/add/1", GOOD, 1)  # acknowledged, so not sent again
            await device.next()
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


async def test_a_server_that_crashes_and_comes_back_finds_everybody_again(models: Path) -> None:
    async with (
        NatsServer(token=TOKEN, mqtt="127.0.0.1:0") as server,
        at_shop(models, server.url) as door,
        shop(port_of(server), "camera-9", clean=False) as device,
    ):
        await device.ask("mesh/shop/infer/add/1", GOOD, 1)
        async with device.again():
            await server.kill()
            await server.start()
        await _until_on_bus(door)
        topic, result = await device.ask("mesh/shop/infer/add/2", GOOD, 1)
        assert topic == "mesh/shop/result/add/2"
        assert "outputs" in result
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


async def test_nothing_is_lost_or_answered_twice_when_an_agent_leaves_and_comes_back(
    port: tuple[int, str], models: Path
) -> None:
    number, url = port
    async with at_shop(models, url, "edge-1"), shop(number, "camera-6") as device:
        sent = 0

        def more() -> None:
            nonlocal sent
            for _ in range(50):
                device.send(f"mesh/shop/infer/add/{sent}", GOOD, sent % 3)
                sent += 1

        for _ in range(2):
            async with at_shop(models, url, "edge-2"):
                more()
                await device.next()  # what follows is on its way while edge-2 leaves
        more()
        heard = [await device.next() for _ in range(sent - 2)]
        assert [result for _, result in heard if "outputs" not in result] == []
        assert len({topic for topic, _ in heard}) == len(heard)
        await device.ask("mesh/shop/infer/add/last", GOOD)
        assert device.silent


async def test_an_agent_that_leaves_answers_what_it_has_not_even_routed(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with shop(number, "camera-10") as device:
        async with at_shop(models, url, http={"listen": "127.0.0.1:0", "grace_s": 10}):
            await device.sent("mesh/shop/infer/nothing/1", GOOD, 1)  # waits for nodes that may have it
        _, result = await device.next()
        assert result["code"] == "model_not_found"


async def test_a_request_while_no_agent_is_there_is_lost(port: tuple[int, str], models: Path) -> None:
    number, url = port
    async with shop(number, "camera-7") as device:
        for qos in (0, 1, 2):
            await device.sent("mesh/shop/infer/add/lost", GOOD, qos)
        async with at_shop(models, url):
            topic, _ = await device.ask("mesh/shop/infer/add/heard", GOOD)
            assert topic == "mesh/shop/result/add/heard"
            assert device.silent


async def test_a_device_with_a_user_of_its_own_may_only_ask(models: Path) -> None:
    """The configuration of ``docs/mqtt.md``."""
    may = {"publish": ["mesh.shop.infer.>"], "subscribe": ["mesh.shop.result", "mesh.shop.result.>", "$MQTT.sub.>"]}
    users = [
        {"user": "node", "password": "n"},
        {"user": "device", "password": "d", "permissions": may, "allowed_connection_types": ["MQTT"]},
    ]
    async with NatsServer(mqtt="127.0.0.1:0", extra={"authorization": {"users": users}}) as server:
        nats = {"url": server.url, "user": "node", "password": "n"}
        results, forged = "mesh/shop/result/#", Heard()
        async with (
            _connected(agent(models, nats=nats, site={"name": "shop"})),
            NatsBus(NatsOptions((server.url,), "listener", user="node", password="n")) as bus,
            Device(port_of(server), "camera", results, "d", user="device") as device,
        ):
            await bus.wait_connected(PATIENCE_S)
            for subject in ("mesh.v1.shop.node.x.report", "mesh.shop.result.>", "mesh.v1.infer.*"):
                await bus.subscribe(subject, forged)
            await bus.flush()
            for topic in ("mesh/v1/shop/node/x/report", "mesh/shop/result/add", "mesh/v1/infer/add"):
                device.send(topic, b"forged")
            topic, result = await device.ask("mesh/shop/infer/add", GOOD, 1)
            assert topic == "mesh/shop/result/add"
            assert "outputs" in result
            await bus.flush()
            assert [message.subject for message in forged.messages] == ["mesh.shop.result.add"]


async def test_devices_need_the_password(port: tuple[int, str]) -> None:
    number, _ = port
    reader, writer = await soon(asyncio.open_connection("127.0.0.1", number))
    name = b"\x00\x04MQTT\x04\xc2\x00\x3c" + b"\x00\x01c" + b"\x00\x01u" + b"\x00\x05wrong"
    writer.write(bytes([0x10, len(name)]) + name)
    assert await soon(reader.readexactly(4)) == b"\x20\x02\x00\x05"  # CONNACK: not authorised
    writer.close()
    await writer.wait_closed()


async def test_the_line_for_a_shell_in_the_documentation(port: tuple[int, str], models: Path) -> None:
    number, url = port
    document = (ROOT / "docs" / "mqtt.md").read_text()
    asking, said = re.search(r"mosquitto_pub (.*?}')\n", document, re.S), "mesh/default/result/#"
    assert asking is not None
    assert f"-t '{said}'" in document
    words = shlex.split(asking[1].replace("\\\n", " "))
    flags = dict(zip(words[::2], words[1::2], strict=True))
    nats = {"url": url, "token": TOKEN}
    async with _connected(agent(models, nats=nats)), Device(number, "shell", said, TOKEN) as device:
        topic, result = await device.ask(flags["-t"], flags["-m"].encode())
        assert topic == flags["-t"].replace("infer", "result")
        assert [output["data"] for output in result["outputs"]] == [[3] * 16, [-1] * 16]
