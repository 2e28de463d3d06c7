"""HTTP itself at the agent's door: framing, methods, paths, limits, callers that leave. Byte for byte on real sockets.

Not here: malformed inference requests (``test_malformed``), what good ones mean (``test_http_door``).
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from mesh import http_server
from tests import onnx_models
from tests.integration import doors
from tests.integration.doors import Connection, Door, request
from tests.malformed import PATH, good_json
from tests.nats import soon

LIMIT = 4096
GOOD = json.dumps(good_json()).encode()
LIVE = request("GET", "/v2/health/live")
INFER = request("POST", PATH, GOOD)
CHUNKED = request("POST", PATH, headers={"Transfer-Encoding": "chunked"})
MIB = 1 << 20


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    models = doors.repository(tmp_path, {"simple": onnx_models.simple()})
    async with doors.agent(models, http={"max_body_bytes": LIMIT}) as served:
        yield served


@pytest.fixture
async def connection(door: Door) -> AsyncIterator[Connection]:
    async with door.connect() as connected:
        yield connected


async def serves(connection: Connection) -> bool:
    """Whether a good request on the connection gets its answer."""
    await connection.send(INFER)
    return bool((await connection.answer()).output("OUTPUT0").tolist() == [2] * 16)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the beginning of TLS
        b"HELLO\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT host:80 HTTP/1.1\r\nHost: host\r\n\r\n",
        b"GET /v2/health/live HTTP/1.1\nHost: door\n\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost : door\r\n\r\n",
        request("POST", PATH, headers={"Content-Length": "-1"}),
        request("POST", PATH, headers={"Content-Length": "+5"}),
        request("POST", PATH, headers={"Content-Length": "9" * 40}),
        request("POST", PATH, GOOD, {"Content-Length": "5"}),
        request("POST", PATH, GOOD, {"Transfer-Encoding": "chunked"}),
        request("POST", PATH, headers={"Transfer-Encoding": "gzip"}),
        CHUNKED + b"zz\r\nabc\r\n",
        CHUNKED + b"-1\r\nabc\r\n",
        CHUNKED + b"f" * 20 + b"\r\nabc\r\n",
        CHUNKED + chunks(GOOD)[:-2] + b"xx",
    ],
)
async def test_what_is_no_http_is_refused_and_hung_up_on(door: Door, sent: bytes) -> None:
    async with door.connect() as connection:
        await connection.send(sent)
        answer = await connection.answer()
        assert 400 <= answer.status < 500
        assert answer.error
        assert await connection.closed()
    async with door.connect() as connection:
        assert await serves(connection)


@pytest.mark.parametrize("sent", [b"X: " + b"a" * 4 * MIB, b"X: y\r\n" * (MIB // 2) + b"\r\n"])
async def test_a_huge_head_is_refused_before_it_is_kept(door: Door, sent: bytes) -> None:
    async with door.connect() as connection:
        await connection.send(b"GET /v2/health/live HTTP/1.1\r\n")
        await connection.send(sent)
        answer = await connection.answer()
        assert answer.status == 400
        assert "head of the request is over" in answer.error
        assert await connection.closed()
    async with door.connect() as connection:
        await connection.send(b"GET /" + b"a" * 4 * MIB)
        assert (await connection.answer()).status == 400
    async with door.connect() as connection:
        assert await serves(connection)


async def test_answers_that_are_due_come_before_the_refusal_of_what_follows(connection: Connection) -> None:
    await connection.send(INFER + LIVE + b"GARBAGE\r\n\r\n")
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    assert (await connection.answer()).status == 200
    assert (await connection.answer()).status == 400
    assert await connection.closed()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_only_post_infers(connection: Connection, method: str) -> None:
    for path in (PATH, "/v2/models/nobody/versions/7/infer"):
        answer = await connection.request(method, path, GOOD)
        assert answer.status == 405
        assert answer.headers["allow"] == "POST"
        if method != "HEAD":
            assert method in answer.error
    assert await serves(connection)


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/simple", "/v2/models/simple/ready"])
async def test_pages_are_only_read(connection: Connection, path: str) -> None:
    answer = await connection.request("POST", path, GOOD)
    assert answer.status == 405
    assert path in answer.error
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    head = await connection.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert await serves(connection)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models",
        "/v2/models",
        "/v2/models/",
        "//v2/health/live",
        "/v2/models/../../etc/passwd",
        "/v2/models/..%2f..%2fetc%2fpasswd",
        "/v2/models/..%2f..%2fetc/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/simple%2F1/infer",
        "/v2/models/simple%00/infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/simple%0d%0aX:%20y/infer",
        "/v2/models/simple/infer/",
        "/v2/models/simple/versions//infer",
    ],
)
async def test_what_is_not_there_is_told_in_the_protocols_own_words(connection: Connection, path: str) -> None:
    answer = await connection.request("POST", path, GOOD)
    assert answer.status == 404
    assert answer.error
    assert answer.headers.keys() <= {"content-type", "content-length", "mesh-error"}
    assert await serves(connection)


async def test_a_name_may_be_percent_encoded(connection: Connection) -> None:
    answer = await connection.request("POST", "/v2/models/s%69mple/versions/%31/infer?trace=1", GOOD)
    assert answer.output("OUTPUT0").tolist() == [2] * 16


async def test_a_body_may_come_in_chunks(connection: Connection) -> None:
    await connection.send(CHUNKED + chunks(GOOD[:1], GOOD[1:100], GOOD[100:], b""))
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    await connection.send(CHUNKED + b"%X;name=value\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(GOOD), GOOD))
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    assert await serves(connection)


@pytest.mark.parametrize(("coding", "bits"), [("gzip", 31), ("deflate", 15)])
async def test_a_compressed_body_may_come_in_chunks(connection: Connection, coding: str, bits: int) -> None:
    deflating = zlib.compressobj(wbits=bits)
    packed = deflating.compress(GOOD) + deflating.flush()
    head = CHUNKED[:-2] + f"Content-Encoding: {coding}\r\n\r\n".encode()
    await connection.send(head + chunks(packed[:5], packed[5:], b""))
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    await connection.send(head + chunks(packed[:-1], b""))
    assert (await connection.answer()).error == f"the {coding} body is cut off"
    await connection.send(head + chunks(packed[:5], b""))
    assert (await connection.answer()).status == 400
    assert await serves(connection)


async def test_a_body_over_the_limit_is_refused_and_not_kept(door: Door) -> None:
    process = psutil.Process()
    async with door.connect() as connection:
        assert await serves(connection)
    before = process.memory_info().rss
    endless = chunks(b"x" * MIB)
    for head, size in (
        (request("POST", PATH, headers={"Content-Length": "1000000000000"}), "1000000000000"),
        (CHUNKED, ""),
    ):
        async with door.connect() as connection:
            await connection.send(head)
            sending = asyncio.ensure_future(connection.send_on(endless))
            answer = await connection.answer()
            assert answer.status == 413
            assert size in answer.error
            assert str(LIMIT) in answer.error
            sending.cancel()
            await asyncio.wait([sending])
    async with door.connect() as connection:
        assert await serves(connection)
    assert process.memory_info().rss - before < 64 * MIB


async def test_100_continue_is_said_only_to_what_is_wanted(connection: Connection) -> None:
    await connection.send(request("POST", PATH, headers={"Expect": "100-continue", "Content-Length": str(len(GOOD))}))
    assert (await connection.answer()).status == 100
    await connection.send(GOOD)
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    await connection.send(request("POST", PATH, headers={"Expect": "100-continue", "Content-Length": "5000000"}))
    assert (await connection.answer()).status == 413


async def test_http_1_0_is_answered_and_hung_up_on(connection: Connection) -> None:
    await connection.send(INFER.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    assert await connection.closed()


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_ignored(connection: Connection, protocol: str) -> None:
    """Java's client offers HTTP/2 with every request it makes over plain TCP."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"}
    await connection.send(request("POST", PATH, GOOD, offer) + LIVE + request("GET", "/v2/health/live", headers=offer))
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    assert (await connection.answer()).status == 200
    assert (await connection.answer()).status == 200
    sent = request("POST", PATH, GOOD, offer)
    for at in range(0, len(sent), 50):
        await connection.send(sent[at : at + 50])
        await asyncio.sleep(0)
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16
    assert await serves(connection)


async def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    burst = b"".join(request("POST", PATH, json.dumps(good_json(id=str(n))).encode()) + LIVE for n in range(40))
    await connection.send(burst + request("POST", PATH, b"{}") + INFER)
    for n in range(40):
        assert (await connection.answer()).json()["id"] == str(n)
        assert (await connection.answer()).body == b'{"live":true}'
    assert (await connection.answer()).status == 400
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16


async def test_a_slow_body_holds_up_nobody_else(door: Door, connection: Connection) -> None:
    head, body = INFER[: -len(GOOD)], GOOD
    await connection.send(head)
    for at in range(0, len(body), 20):
        await connection.send(body[at : at + 20])
        async with door.connect() as other:
            assert await serves(other)
    assert (await connection.answer()).output("OUTPUT0").tolist() == [2] * 16


async def test_a_connection_that_stalls_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("STALL_S", "KEEP_ALIVE_S", "SWEEP_S"):
        monkeypatch.setattr(http_server, limit, 0.05)

    async def stall(sent: bytes) -> bool:
        async with door.connect() as connection:
            await connection.send(sent)
            return await connection.closed()

    stalled = (b"", b"GET /v2/he", INFER[:-1], CHUNKED, CHUNKED + chunks(GOOD[:9]))
    assert await asyncio.gather(*map(stall, stalled)) == [True] * len(stalled)


async def test_a_caller_that_leaves_in_the_middle_leaves_nothing_behind(door: Door) -> None:
    async with door.connect() as connection:
        assert await serves(connection)
    process = psutil.Process()
    tasks, files = len(asyncio.all_tasks()), process.num_fds()
    for sent in (INFER[:40], INFER[:-1], CHUNKED + chunks(GOOD[:9]), INFER, INFER * 3, LIVE + INFER[:-1]):
        for leave in (Connection.reset, Connection.finish):
            async with door.connect() as connection:
                await connection.send(sent)
                await asyncio.sleep(0)
                leave(connection)
    async with door.connect() as connection:
        assert await serves(connection)

    async def settled() -> bool:
        return len(asyncio.all_tasks()) <= tasks + 1 and process.num_fds() <= files  # one is this very poll

    await doors.until(settled)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/html; charset=x", "?"])
async def test_the_content_type_does_not_matter(connection: Connection, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await connection.request("POST", PATH, GOOD, headers)
    assert answer.output("OUTPUT0").tolist() == [2] * 16
    assert answer.headers["content-type"] == "application/json"


async def test_a_version_that_can_be_none_is_told_in_the_protocols_own_words(connection: Connection) -> None:
    answer = await connection.request("POST", "/v2/models/simple/versions/%2e%2e/infer", GOOD)
    assert answer.status == 400
    assert answer.error.startswith("failed to get model version from specified version string '..'")
    assert await serves(connection)


async def test_a_body_that_is_not_encoded_as_it_says_is_refused_by_name(connection: Connection) -> None:
    for encoding in ("gzip", "deflate", "GZip"):
        answer = await connection.request("POST", PATH, GOOD, {"Content-Encoding": encoding})
        assert answer.status == 400
        assert encoding.lower() in answer.error.lower()
    for encoding in ("identity, gzip", "br"):
        answer = await connection.request("POST", PATH, GOOD, {"Content-Encoding": encoding})
        assert answer.status == 415
        assert encoding in answer.error
        assert answer.headers["accept-encoding"] == "gzip, deflate"
    for encoding in ("identity", "Identity"):
        assert (await connection.request("POST", PATH, GOOD, {"Content-Encoding": encoding})).status == 200


async def test_many_connections_at_once_each_get_their_own_answer(door: Door) -> None:
    async def one(number: int) -> None:
        async with door.connect() as connection:
            body = json.dumps(good_json(id=f"caller-{number}")).encode()
            for _ in range(3):
                assert (await connection.request("POST", PATH, body)).json()["id"] == f"caller-{number}"

    await soon(asyncio.gather(*map(one, range(100))))
