"""Metadata that a door keeps, asked for again once it is no longer fresh; labels that no answer is lost for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from mesh.deadline import Deadline
from mesh.errors import InferenceFailed, MeshError, NodeLost
from mesh.hop import Context
from mesh.inquiry import Inquiry
from mesh.known import DEADLINE_MS, FRESH_S, Known
from mesh.oip.request import RequestedOutput
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.values import ModelIdentity, ModelMetadata
from mesh.view import View
from tests.fakes import a_request

IDENTITY = ModelIdentity("m", "1", "d")


class Asked:
    """An inquiry that answers how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    async def metadata(self, identity: ModelIdentity, context: Any) -> ModelMetadata:
        self.times += 1
        return ModelMetadata(identity.name, ("1",), "onnx", (), (), {"labels.Y": f"asked {self.times}\nb"})


async def test_labels_are_asked_for_again() -> None:
    now, asked = [100.0], Asked()
    known = Known(cast("Inquiry", asked), cast("View", None), contextlib.nullcontext, lambda: now[0])
    for at, times in ((100.0, 1), (100.0 + FRESH_S / 2, 1), (100.0 + FRESH_S, 2), (101.0 + FRESH_S, 2)):
        now[0] = at
        assert (await known.metadata(IDENTITY)).labels == {"Y": [f"asked {times}", "b"]}


class Telling:
    """An inquiry that tells nothing before ``told`` is set, and fails with ``error`` then."""

    def __init__(self, error: MeshError | None = None) -> None:
        self.error = error
        self.asked: list[Deadline] = []
        self.told = asyncio.Event()

    async def metadata(self, identity: ModelIdentity, context: Context) -> ModelMetadata:
        self.asked.append(context.deadline)
        await self.told.wait()
        if self.error is not None:
            raise self.error
        return ModelMetadata(identity.name, ("1",), "onnx", (), (), {"labels.Y": "low\nhigh"})


def asking(inquiry: Telling | Asked, now: list[float]) -> Known:
    return Known(cast("Inquiry", inquiry), cast("View", None), contextlib.nullcontext, lambda: now[0])


async def best(known: Known, deadline: Deadline, ran: Callable[[], None] = lambda: None) -> bytes:
    """The text of the best class of an answer; ``ran`` is called once the answer is there and may be named."""
    request = msgspec.structs.replace(a_request(), outputs=(RequestedOutput("Y", True, {"classification": 1}),))
    async with known.classes(request, IDENTITY, deadline) as (values, named):
        assert values.outputs == (RequestedOutput("Y", True, {}),)
        await asyncio.sleep(0)
        ran()
        answer = InferResponse("m", "1", "", {}, (Tensor("Y", "FP32", (2,), np.array([1, 3], np.float32).tobytes()),))
        body = await named(encode_response(answer, values))
        (output,) = decode_response(body.joined(), body.header_length).outputs
        return bytes(output.data)[4:]


async def test_labels_are_asked_for_beside_the_run_and_not_beyond_its_deadline() -> None:
    telling = Telling()
    deadline, known = Deadline.after_ms(1_000.0), asking(telling, [100.0])

    def ran() -> None:
        assert telling.asked == [deadline]
        telling.told.set()

    assert await best(known, deadline, ran) == b"3.000000:1:high"
    assert len(telling.asked) == 1
    long = Telling()
    long.told.set()
    await best(asking(long, [100.0]), Deadline.after_ms(60_000.0))
    assert long.asked[0].left_ms() <= DEADLINE_MS


async def test_an_answer_is_not_lost_for_want_of_labels(caplog: pytest.LogCaptureFixture) -> None:
    telling, now = Telling(NodeLost("the node that held it is gone")), [100.0]
    telling.told.set()
    known = asking(telling, now)
    assert await best(known, Deadline.after_ms(1_000.0)) == b"3.000000:1"
    assert "nobody tells what the classes of m are called: the node that held it is gone" in caplog.text
    telling.error = None
    assert await best(known, Deadline.after_ms(1_000.0)) == b"3.000000:1:high"
    now[0] += FRESH_S
    telling.error = NodeLost("the node that held it is gone")
    assert await best(known, Deadline.after_ms(1_000.0)) == b"3.000000:1:high"
    assert len(telling.asked) == 3


async def test_a_run_that_fails_leaves_no_question_behind() -> None:
    telling = Telling()
    with pytest.raises(InferenceFailed):
        await best(asking(telling, [100.0]), Deadline.after_ms(1_000.0), raising)
    assert len(telling.asked) == 1


def raising() -> None:
    raise InferenceFailed("it failed")
