"""What can be asked at a door beside inferences (``hop.Question``), answered as JSON: the same on HTTP and bus.

Not here: paths and subjects (the doors), the answers themselves (``dataplane``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import msgspec

from mesh.dataplane import Dataplane
from mesh.errors import InvalidRequest, PayloadTooLarge
from mesh.hop import CHANGES, Question
from mesh.oip.documents import encode_model_metadata
from mesh.oip.statistics import encode_statistics
from mesh.repository import ModelRepository
from mesh.values import ModelRef

QUESTIONS: frozenset[str] = frozenset(get_args(Question))
READ = QUESTIONS - CHANGES
OF_A_MODEL = READ - {"index"}
MAX_ASKED = 1 << 20
"""Bytes of what is asked, a model's configuration in it: parsed, JSON can take fifty times the room."""

Repository = Callable[[bool], ModelRepository]
"""The repository that the caller may see, or change."""


async def answer(
    dataplane: Dataplane, what: str, ref: ModelRef, body: bytes, *, hops: int, repository: Repository
) -> bytes:
    """``what`` is one of ``QUESTIONS``; empty for what is only done."""
    if what == "metadata":
        return encode_model_metadata(await dataplane.metadata(ref, hops))
    if what == "config":
        return msgspec.json.encode(await dataplane.config(ref, hops))
    if what == "statistics":
        return encode_statistics(await dataplane.statistics(ref if ref.name else None, hops))
    asked = json_object(body)
    if what == "index":
        entries = await repository(False).index()
        return msgspec.json.encode([e for e in entries if e.state == "READY" or not asked.get("ready")])
    if what == "load":
        await repository(True).load(ref.name, _parameters(asked))
    else:
        await repository(True).unload(ref.name)
    return b""


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object. Raises ``InvalidRequest`` or ``PayloadTooLarge``."""
    if len(body) > MAX_ASKED:
        raise PayloadTooLarge(f"the body has {len(body)} bytes, here it may have {MAX_ASKED}")
    try:
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from None


def _parameters(asked: dict[str, Any]) -> dict[str, Any]:
    parameters = asked.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("'parameters' of the request must be an object")
    return parameters
