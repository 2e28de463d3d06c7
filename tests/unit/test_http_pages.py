"""What fails at the door: told in one way whatever the page, logged once, counted, and bounded before it is parsed."""

from __future__ import annotations

import json
import logging

import pytest

from mesh.errors import Overloaded
from mesh.http_answer import Answer
from mesh.http_connection import Request
from mesh.http_door import HttpDoor
from mesh.http_head import parse_head
from mesh.questions import MAX_ASKED
from tests.unit.test_dataplane import Doors, serving


async def told(doors: Doors, method: str, path: str, body: bytes = b"", encoding: str = "identity") -> Answer:
    headers = f"Content-Length: {len(body)}\r\nContent-Encoding: {encoding}"
    head = parse_head(f"{method} {path} HTTP/1.1\r\nHost: door\r\n{headers}\r\n\r\n".encode())
    return await HttpDoor(doors.dataplane)(Request(head, body))


def fails_with(error: Exception, doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    async def statistics(*_: object) -> None:
        raise error

    monkeypatch.setattr(doors.dataplane, "statistics", statistics)


async def test_an_error_of_a_page_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as doors:
        fails_with(Overloaded("full", retry_after_s=2.5), doors, monkeypatch)
        answer = await told(doors, "GET", "/v2/models/stats")
    assert (answer.status, json.loads(bytes(answer.parts[0]))) == (429, {"error": "full"})
    assert answer.head.endswith(b"mesh-error: overloaded\r\nretry-after: 3\r\n")


async def test_what_goes_wrong_unexpectedly_is_logged_once_under_the_id_that_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as doors:
        fails_with(ValueError("secret"), doors, monkeypatch)
        answer = await told(doors, "GET", "/v2/models/stats")
    text = json.loads(bytes(answer.parts[0]))["error"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (answer.status, "secret" in text) == (500, False)
    assert text.split()[-1] in record.getMessage()


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/m/load"])
async def test_a_question_is_small(path: str) -> None:
    most = b'{"x":[' + b"[]," * (MAX_ASKED // 3) + b"[]]}"
    async with serving() as doors:
        answer = await told(doors, "POST", path, most)
        assert (answer.status, "here it may have" in json.loads(bytes(answer.parts[0]))["error"]) == (413, True)
        assert (await told(doors, "POST", path, b'{"x":[]}')).status != 413


async def test_a_body_that_cannot_be_unpacked_is_counted_as_a_failure() -> None:
    async with serving() as doors:
        for encoding, code, status in (("br", "encoding_unknown", 415), ("gzip", "invalid_request", 400)):
            answer = await told(doors, "POST", "/v2/models/m/infer", b"{}", encoding)
            assert answer.status == status
            assert doors.dataplane.requests.failed["", "", code, "application"] == 1
