"""Streams on HTTP/1.1 as a caller meets them, byte for byte: events, frames, chunks, and what comes behind.

Not here: streams through the mesh (``test_streams``), the connection alone (``unit/test_http_connection``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import pytest

from mesh import hop, http_server, http_stream
from mesh.errors import InferenceFailed
from mesh.hop import Reply
from mesh.oip.parts import CONTENT_TYPE, Frames
from mesh.oip.response import decode_response
from tests.fakes import until
from tests.integration.doors import Connection, Door, request
from tests.integration.test_http_wire import chunks
from tests.nats import soon
from tests.streams import COUNT, CountingModels, asked, counting_node

PATH = f"/v2/models/{COUNT}/infer_stream"
FRAMES = {"Accept": CONTENT_TYPE}
MB = 1 << 20


@pytest.fixture
def models() -> CountingModels:
    return CountingModels()


@pytest.fixture
async def door(models: CountingModels) -> AsyncIterator[Door]:
    async with counting_node(models, "edge-1") as door:
        yield door


@pytest.fixture
async def line(door: Door) -> AsyncIterator[Connection]:
    async with door.connect() as line:
        yield line


def post(times: int, headers: dict[str, str] | None = None, **parameters: Any) -> bytes:
    return request("POST", PATH, json.dumps(asked(times, **parameters)).encode(), headers)


async def events(line: Connection) -> list[Any]:
    """The data of all events of a stream that has begun; an error is a string."""
    text = b""
    while chunk := await line.chunk():
        text += chunk
    found = []
    for event in text.decode().split("\n\n")[:-1]:
        if event.startswith("event: error\ndata: "):
            found.append(json.loads(event.partition("data: ")[2])["error"])
        elif not event.startswith(":"):
            assert event.startswith("data: ")
            found.append(json.loads(event[6:]))
    return found


def numbers(documents: list[Any]) -> list[int]:
    return [next(o for o in document["outputs"] if o["name"] == "N")["data"][0] for document in documents]


async def test_each_event_is_one_answer_in_json_and_the_connection_goes_on(line: Connection) -> None:
    for times in (3, 0, 1):
        body = asked(times) | {"id": "7", "outputs": [{"name": "N", "parameters": {"binary_data": True}}]}
        body["parameters"]["binary_data_output"] = True
        await line.send(request("POST", PATH, json.dumps(body).encode(), {"Accept": "text/event-stream, */*"}))
        begun = await line.begun()
        assert (begun.status, begun.headers["content-type"]) == (200, "text/event-stream")
        assert (begun.headers["transfer-encoding"], begun.headers["cache-control"]) == ("chunked", "no-store")
        assert begun.headers.get("mesh-node") == ("edge-1" if times else None)
        documents = await events(line)
        assert numbers(documents) == list(range(times))
        assert all((d["model_name"], d["model_version"], d["id"]) == (COUNT, "1", "7") for d in documents)
    assert (await line.request("GET", "/v2/health/live")).status == 200


async def test_each_answer_of_a_stream_is_classified(line: Connection) -> None:
    wanted = [{"name": "N", "parameters": {"classification": 1}}]
    await line.send(request("POST", PATH, json.dumps(asked(3) | {"outputs": wanted}).encode()))
    assert (await line.begun()).status == 200
    named = [next(o for o in document["outputs"] if o["name"] == "N") for document in await events(line)]
    assert [(output["datatype"], output["data"]) for output in named] == [("BYTES", [f"{n}:0"]) for n in range(3)]


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("coding", "bits"), [("gzip", 31), ("deflate", 15)])
async def test_a_stream_is_asked_for_with_a_compressed_body(
    line: Connection, coding: str, bits: int, chunked: bool
) -> None:
    deflating = zlib.compressobj(wbits=bits)
    body = deflating.compress(json.dumps(asked(3)).encode()) + deflating.flush()
    for _ in range(2):
        if chunked:
            head = {"Content-Encoding": coding, "Transfer-Encoding": "chunked"}
            await line.send(request("POST", PATH, None, head) + chunks(body[:7], body[7:], b""))
        else:
            await line.send(request("POST", PATH, body, {"Content-Encoding": coding}))
        assert (await line.begun()).status == 200
        assert numbers(await events(line)) == [0, 1, 2]
    await line.send(request("POST", PATH, body[:-1], {"Content-Encoding": coding}))
    assert (await line.answer()).error == f"the {coding} body is cut off"


async def test_an_ordinary_model_answers_once(models: CountingModels, line: Connection) -> None:
    models.loads[0] = msgspec.structs.replace(models.loads[0], decoupled=False)
    await line.send(post(5))
    assert (await line.begun()).status == 200
    assert len(await events(line)) == 1


async def test_an_error_before_the_first_answer_is_an_ordinary_one(line: Connection) -> None:
    for headers in ({}, FRAMES):
        await line.send(post(5, headers, fail_at=0))
        answer = await line.answer()
        assert (answer.status, answer.error, answer.headers["mesh-error"]) == (500, "it fails at 0", "inference_failed")
    for path in ("/v2/models/nope/infer_stream", f"/v2/models/{COUNT}/versions/9/infer_stream"):
        assert (await line.request("POST", path, json.dumps(asked(1)).encode())).status == 404
    assert (await line.request("POST", PATH, b"{")).status == 400
    assert (await line.request("GET", PATH)).status == 405
    assert (await line.request("HEAD", PATH)).status == 405
    assert (await line.request("GET", "/v2/health/live")).status == 200


async def test_an_error_behind_answers_is_an_event(models: CountingModels, line: Connection) -> None:
    await line.send(post(5, fail_at=2))
    assert (await line.begun()).status == 200
    *documents, error = await events(line)
    assert (numbers(documents), error) == ([0, 1], "it fails at 2")


async def test_what_goes_wrong_unexpectedly_is_not_told_to_the_world(line: Connection) -> None:
    for headers in ({}, FRAMES):
        await line.send(post(2, headers, pad="a secret"))
        answer = await line.answer()
        assert answer.status == 500
        assert "secret" not in answer.error


async def test_a_version_may_be_named(line: Connection) -> None:
    path = f"/v2/models/{COUNT}/versions/1/infer_stream"
    await line.send(request("POST", path, json.dumps(asked(2)).encode()))
    assert (await line.begun()).status == 200
    assert numbers(await events(line)) == [0, 1]


async def test_frames_carry_binary_answers(line: Connection) -> None:
    body = asked(3, pad=100_000)
    body["parameters"]["binary_data_output"] = True
    await line.send(request("POST", PATH, json.dumps(body).encode(), FRAMES | {"Mesh-Want": "mesh-load"}))
    begun = await line.begun()
    assert (begun.status, begun.headers["content-type"]) == (200, CONTENT_TYPE)
    assert {"mesh-node", "mesh-route", "mesh-hops", "mesh-load", "mesh-time-ms"} <= begun.headers.keys()
    frames, bodies = Frames(), []
    while chunk := await line.chunk():
        bodies += frames.feed(chunk)
    assert (frames.ended, frames.error) == (True, None)
    answers = [decode_response(body.joined(), body.header_length) for body in bodies]
    assert [a.outputs[0].numpy().tolist() for a in answers] == [[0], [1], [2]]
    assert {a.outputs[1].nbytes for a in answers} == {100_000}


async def test_an_error_behind_frames_is_the_last_one(line: Connection) -> None:
    await line.send(post(3, FRAMES, fail_at=1))
    await line.begun()
    frames, bodies = Frames(), []
    while chunk := await line.chunk():
        bodies += frames.feed(chunk)
    assert (len(bodies), frames.ended) == (1, True)
    assert frames.error is not None
    assert (frames.error.code, frames.error.text) == ("inference_failed", "it fails at 1")


async def test_in_http_1_0_the_end_of_the_connection_is_the_end_of_the_stream(line: Connection) -> None:
    await line.send(post(3).replace(b"HTTP/1.1", b"HTTP/1.0"))
    begun = await line.begun()
    assert (begun.status, begun.headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in begun.headers
    text = (await line.rest()).decode()
    assert numbers([json.loads(event[6:]) for event in text.split("\n\n")[:-1]]) == [0, 1, 2]


async def test_the_next_request_waits_until_the_stream_has_ended(models: CountingModels, line: Connection) -> None:
    await line.send(post(3, hold_at=1) + request("GET", "/v2/health/live") + post(2))
    assert (await line.begun()).status == 200
    await until(lambda: models.produced == 1)
    models.go.set()
    assert numbers(await events(line)) == [0, 1, 2]
    assert (await line.answer()).status == 200
    await line.begun()
    assert numbers(await events(line)) == [0, 1]


@pytest.mark.parametrize("headers", [{}, FRAMES])
@pytest.mark.parametrize("hold_at", [0, 1])
async def test_a_caller_that_hangs_up_ends_the_run(
    models: CountingModels, door: Door, headers: dict[str, str], hold_at: int
) -> None:
    async with door.connect() as line:
        await line.send(post(5, headers, hold_at=hold_at))
        await until(lambda: models.running == 1)
        if hold_at:
            await line.begun()
            await line.chunk()
        line.reset()
        await models.ended()
    failed = (await door.get("/metrics")).body.decode()
    assert 'outcome="cancelled"' in failed


TCP_REPAIR = 19
"""Of Linux: a socket closed in this state sends nothing, as one whose machine lost its power."""


def may_vanish() -> bool:
    with socket.socket() as tried:
        try:
            tried.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError:
            return False
    return True


@pytest.mark.skipif(not may_vanish(), reason="needs CAP_NET_ADMIN")
async def test_a_caller_that_lost_its_power_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, models: CountingModels
) -> None:
    """Nothing is sent to it meanwhile, so nothing but a probe could tell."""
    for limit in ("PROBE_AFTER_S", "PROBE_S"):
        monkeypatch.setattr(http_server, limit, 1)
    async with counting_node(models, "edge-1") as door:
        host, _, port = door.address.rpartition(":")
        loop, line = asyncio.get_running_loop(), socket.socket()
        line.setblocking(False)
        await loop.sock_connect(line, (host, int(port)))
        await loop.sock_sendall(line, post(5, FRAMES, hold_at=0, timeout=3_600_000_000))
        await until(lambda: models.running == 1)
        line.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        line.close()
        await models.ended()
        assert not models.go.is_set()


async def test_a_caller_that_does_not_read_stops_the_model_and_is_cut_in_the_end(
    monkeypatch: pytest.MonkeyPatch, models: CountingModels, door: Door, line: Connection
) -> None:
    async with door.connect() as stuck:
        await stuck.send(post(1000, FRAMES, pad=MB))
        await until(lambda: models.produced > 0)
        await line.send(post(300))
        await line.begun()
        assert len(await events(line)) == 300
        assert models.produced < 300 + 60
        assert models.running == 1
        for limit in ("STALL_S", "SWEEP_S"):
            monkeypatch.setattr(http_server, limit, 0.05)
        await models.ended()


async def test_silence_is_filled_with_comments(
    monkeypatch: pytest.MonkeyPatch, models: CountingModels, line: Connection
) -> None:
    monkeypatch.setattr(http_stream, "SILENCE_S", 0.02)
    await line.send(post(2, hold_at=1))
    await line.begun()
    chunks = [await line.chunk() for _ in range(4)]
    assert chunks[1:] == [http_stream.ALIVE] * 3
    models.go.set()
    assert numbers(await events(line)) == [1]


@pytest.mark.parametrize("fail_at", [-1, 0])
async def test_silence_before_the_first_answer_is_filled_too(
    monkeypatch: pytest.MonkeyPatch, models: CountingModels, door: Door, line: Connection, fail_at: int
) -> None:
    monkeypatch.setattr(http_stream, "SILENCE_S", 0.02)
    await line.send(post(2, hold_at=0, fail_at=fail_at))
    begun = await line.begun()
    assert (begun.status, begun.headers["content-type"], begun.headers.get("mesh-node")) == (
        200,
        "text/event-stream",
        None,
    )
    assert [await line.chunk() for _ in range(3)] == [http_stream.ALIVE] * 3
    models.go.set()
    found = await events(line)
    assert found == ["it fails at 0"] if fail_at == 0 else numbers(found) == [0, 1]
    models.go.clear()
    async with door.connect() as leaving:
        await leaving.send(post(2, hold_at=0))
        await leaving.begun()
        leaving.reset()
        await models.ended()


async def test_an_error_that_nobody_is_there_to_read_is_no_error_of_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_stream, "SILENCE_S", 0.01)
    go, unread = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context["message"]))

    async def fails() -> AsyncGenerator[Reply, None]:
        await go.wait()
        raise InferenceFailed("too late")
        yield

    events = http_stream.events(http_stream.kept_alive(fails()))
    assert await anext(events) == http_stream.ALIVE
    go.set()
    for _ in range(3):
        await asyncio.sleep(0)
    await events.aclose()
    gc.collect()
    assert unread == []


async def test_a_door_that_closes_lets_streams_end_and_cuts_what_goes_on(models: CountingModels) -> None:
    async with contextlib.AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(contextlib.AsyncExitStack())
        door = await leaving.enter_async_context(counting_node(models, "edge-1", http={"grace_s": 30}))
        line = await stack.enter_async_context(door.connect())
        await line.send(post(3, hold_at=1))
        await line.begun()
        left = asyncio.ensure_future(leaving.aclose())
        await until(lambda: models.draining)
        models.go.set()
        assert numbers(await events(line)) == [0, 1, 2]
        await soon(left)
    models.go.clear()
    async with contextlib.AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(contextlib.AsyncExitStack())
        door = await leaving.enter_async_context(counting_node(models, "edge-1", http={"grace_s": 0}))
        line = await stack.enter_async_context(door.connect())
        await line.send(post(3, hold_at=1))
        await line.begun()
        await line.chunk()
        await soon(leaving.aclose())
        assert await line.closed()
        assert models.running == 0


async def test_a_stranger_cannot_pretend_to_be_a_hop(models: CountingModels, line: Connection) -> None:
    await line.send(post(1, {hop.DEADLINE: "0", hop.HOPS: "9", hop.TOKEN: "made up"}))
    assert (await line.begun()).status == 200
    assert numbers(await events(line)) == [0]
