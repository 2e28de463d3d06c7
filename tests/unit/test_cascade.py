"""Which of two models answers, and that an answer is never lost: the cascade of a door on scripted models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest

from mesh import cascade as cascade_module
from mesh.cascade import MAX_AUDITS, Cascades, Policy
from mesh.deadline import Deadline
from mesh.declarations import Cascade
from mesh.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    ModelRejected,
    NodeLost,
    Overloaded,
)
from mesh.hop import Context, Reply, cascade_headers
from mesh.messages import CLASSES, decode_report, encode_report
from mesh.oip.request import InferRequest, RequestedOutput, encode_request
from mesh.oip.response import InferResponse, decode_response, encode_response
from mesh.oip.tensor import Tensor
from mesh.oip.wire import WireBody
from mesh.values import ModelIdentity
from mesh.view import View
from mesh.watcher import Watcher
from tests.builders import OTHER_DIGEST, a_model_load, a_report, an_identity
from tests.fakes import ScriptedModels, until
from tests.nats import soon

CASCADE = Cascade(next="large", output="p", threshold=0.8)
SURE, UNSURE = [0.9, 0.06, 0.04], [0.5, 0.3, 0.2]
SMALL, LARGE = an_identity("small"), an_identity("large")
KEY = "small", "1"


def declaring(cascade: Cascade | None, name: str = "small", **fields: Any) -> Any:
    return msgspec.structs.replace(a_model_load(name, **fields), cascade=cascade)


def asking(*outputs: str, binary: bool = True, **parameters: Any) -> InferRequest:
    requested = tuple(RequestedOutput(name, binary, {}) for name in outputs)
    x = Tensor.from_numpy("X", np.ones((1, 4), dtype=np.float32))
    request = InferRequest("small", "", "7", parameters, (x,), requested, binary, None)
    request.wire = encode_request(request)
    return request


class Door:
    """One door: a real view, in which the small model is here and the large one elsewhere, before scripted models."""

    def __init__(self, cascade: Cascade | None = CASCADE, *, local: bool = True) -> None:
        self.watcher = Watcher("demo", "me")
        self.models = ScriptedModels(declaring(cascade)) if local else None
        self.cascades = Cascades(self._infer, View("me", self.watcher, self.models), random.Random(7))
        self.asked: list[tuple[str, InferRequest, Context]] = []
        self.scores: dict[str, Any] = {"small": [UNSURE], "large": [[0.1, 0.8, 0.1]]}
        self.outcomes: dict[str, Exception | asyncio.Event] = {}
        self._seq = 0
        self.reports("far", a_model_load("large"))

    def reports(self, node: str, *models: Any, **fields: Any) -> None:
        self._seq += 1
        self.watcher.heard(decode_report(encode_report(a_report(node, seq=self._seq, models=models, **fields))))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]

    @property
    def policy(self) -> Policy:
        return self.cascades.policies[KEY]

    def response(self, name: str) -> InferResponse:
        scores = self.scores[name]
        p = scores if isinstance(scores, Tensor) else Tensor.from_numpy("p", np.array(scores, dtype=np.float32))
        label = Tensor.from_numpy("label", np.array([len(name)], dtype=np.int64))
        return InferResponse(name, "1", "7", {}, (label, p))

    async def _infer(self, request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
        self.asked.append((identity.name, request, context))
        outcome = self.outcomes.get(identity.name)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, asyncio.Event):
            await outcome.wait()
        node, route = ("me", "local") if identity.name == "small" else ("far", "peer")
        return Reply(encode_response(self.response(identity.name), request), node, route)  # type: ignore[arg-type]

    async def ask(self, request: InferRequest | None = None, *, left_ms: float = 60_000.0, hops: int = 0) -> Reply:
        context = Context(Deadline.after_ms(left_ms), hops)
        return await soon(self.cascades.infer(request or asking(), SMALL, context))


def answer(reply: Reply) -> InferResponse:
    return decode_response(reply.body.joined(), reply.body.header_length)


def scores(reply: Reply) -> list[float]:
    found = {t.name: t for t in answer(reply).outputs}
    return [round(float(s), 4) for s in found["p"].numpy().reshape(-1)]


@contextlib.asynccontextmanager
async def auditing(share: float = 1.0, target: float | None = None) -> AsyncIterator[Door]:
    """A door whose small model is sure, and differs from the large one."""
    door = Door(msgspec.structs.replace(CASCADE, audit=share, target=target))
    door.scores["small"] = [SURE]
    async with door.cascades.running():
        yield door


async def test_what_is_sure_is_answered_as_it_came() -> None:
    door, request = Door(), asking()
    door.scores["small"] = [SURE]
    reply = await door.ask(request)
    assert door.names == ["small"]
    assert door.asked[0][1] is request
    assert (reply.node, scores(reply), answer(reply).id) == ("me", SURE, "7")
    assert cascade_headers(reply) == {"mesh-cascade": "small", "mesh-confidence": "0.9000"}
    assert (door.policy.answered, door.policy.escalations) == ({"small": 1}, {})


async def test_what_is_not_sure_is_answered_by_the_large_one_in_the_name_of_the_small() -> None:
    door, request = Door(), asking()
    reply = await door.ask(request)
    assert door.names == ["small", "large"]
    sent = door.asked[1][1]
    assert (sent.model, sent.version, sent.inputs, sent.wire) == ("large", "1", request.inputs, request.wire)
    assert (reply.node, reply.route, scores(reply)) == ("far", "peer", [0.1, 0.8, 0.1])
    assert (answer(reply).model, answer(reply).version, answer(reply).id) == ("small", "1", "7")
    assert cascade_headers(reply) == {"mesh-cascade": "large", "mesh-confidence": "0.5000"}
    assert (door.policy.answered, door.policy.escalations) == ({"large": 1}, {"differed": 1})


async def test_one_row_that_is_not_sure_is_enough() -> None:
    door = Door()
    door.scores |= {"small": [SURE, UNSURE], "large": [SURE, SURE]}
    assert (await door.ask()).cascade == "large"
    assert door.policy.escalations == {"agreed": 1}


async def test_the_small_one_has_the_whole_deadline_and_the_large_one_leaves_time_to_answer() -> None:
    door = Door()
    await door.ask(left_ms=40_000)
    (_, _, first), (_, _, second) = door.asked
    assert first.deadline.left_ms() > second.deadline.left_ms()
    assert 0.0 < (first.deadline.at - second.deadline.at) * 1e3 <= cascade_module.MAX_RESERVE_MS + 1e-6
    assert second.hops == 0


@pytest.mark.parametrize(
    "error",
    [Overloaded("busy"), NodeLost("gone"), InferenceFailed("failed"), DeadlineExceeded("late"), RuntimeError("a bug")],
    ids=lambda e: type(e).__name__,
)
async def test_whatever_the_large_one_says_the_answer_that_is_there_goes_out(error: Exception) -> None:
    door = Door()
    door.outcomes["large"] = error
    reply = await door.ask()
    assert (reply.cascade, reply.node, scores(reply)) == ("small", "me", UNSURE)
    assert door.policy.answered == {"small": 1}
    assert door.policy.escalations == {getattr(error, "code", "internal"): 1}


async def test_a_large_one_that_says_nothing_ends_with_the_deadline_and_is_not_waited_for_again() -> None:
    door = Door()
    door.outcomes["large"] = asyncio.Event()
    assert scores(await door.ask(left_ms=400)) == UNSURE
    assert door.policy.escalations == {"deadline_exceeded": 1}
    assert scores(await door.ask(left_ms=100)) == UNSURE
    assert (door.policy.escalations["late"], door.names) == (1, ["small", "large", "small"])


def test_it_is_believed_in_again_after_a_while() -> None:
    pace, now = cascade_module._Pace(), 100.0
    pace.learn(1000.0, now)
    assert pace.beyond_ms(now) == 500.0
    pace.learn(0.0, now)
    assert pace.beyond_ms(now) == 450.0
    assert pace.beyond_ms(now + 10 * cascade_module.FADE_S) < 0.1


async def test_it_is_not_asked_where_time_does_not_suffice() -> None:
    door = Door()
    door.reports("far", a_model_load("large", service_ms=5_000.0), wait_ms=20_000.0)
    assert scores(await door.ask(left_ms=20_000)) == UNSURE
    assert (door.names, door.policy.escalations) == (["small"], {"late": 1})
    door.reports("near", a_model_load("large", service_ms=5.0))
    assert (await door.ask(left_ms=20_000)).cascade == "large"


async def test_a_large_one_that_nobody_can_run_is_not_waited_for() -> None:
    door = Door()
    door.reports("far", a_model_load("large", state="LOADING"))
    assert scores(await door.ask()) == UNSURE
    door.reports("far")
    assert scores(await door.ask()) == UNSURE
    assert (door.names, door.policy.escalations) == (["small"] * 2, {"no_ready_instance": 1, "model_not_found": 1})


async def test_a_large_one_here_is_one_too() -> None:
    door = Door()
    door.reports("far")
    assert door.models is not None
    door.models.loads.append(a_model_load("large"))
    assert (await door.ask()).cascade == "large"


async def test_an_answer_of_other_outputs_is_none() -> None:
    door = Door()
    door.scores["large"] = Tensor.from_numpy("q", np.ones((1, 3), dtype=np.float32))
    assert (await door.ask()).cascade == "small"
    door.scores["large"] = Tensor.from_numpy("p", np.ones((1, 3), dtype=np.float64))
    assert (await door.ask()).cascade == "small"
    assert door.policy.escalations == {"protocol_error": 2}


async def test_other_numbers_of_rows_are_an_answer_that_cannot_be_compared() -> None:
    door = Door()
    door.scores["large"] = [SURE, SURE]
    assert (await door.ask()).cascade == "large"
    assert door.policy.escalations == {"incomparable": 1}


@pytest.mark.parametrize("model", ["small", "large"])
@pytest.mark.parametrize("binary", [True, False])
async def test_the_output_that_tells_confidence_is_asked_for_and_left_out(model: str, binary: bool) -> None:
    door = Door()
    door.scores["small"] = [SURE if model == "small" else UNSURE]
    reply = await door.ask(asking("label", binary=binary))
    assert [[o.name for o in request.outputs] for _, request, _ in door.asked] == [["label", "p"]] * len(door.asked)
    assert reply.cascade == model
    (label,) = answer(reply).outputs
    assert (label.name, label.numpy().tolist()) == ("label", [len(model)])
    assert (reply.body.header_length is None) is not binary


@pytest.mark.parametrize("model", ["small", "large"])
async def test_who_asks_in_json_is_answered_in_json(model: str) -> None:
    door = Door()
    door.scores["small"] = [SURE if model == "small" else UNSURE]
    reply = await door.ask(asking(binary=False))
    document = json.loads(reply.body.joined())
    assert (reply.cascade, document["model_name"], document["id"]) == (model, "small", "7")
    assert [o["name"] for o in document["outputs"]] == ["label", "p"]
    assert document["outputs"][0]["data"] == [len(model)]


async def test_a_large_answer_that_json_cannot_carry_is_none() -> None:
    door = Door()
    door.scores["large"] = [[np.nan, 0.5, 0.5]]
    assert (await door.ask(asking(binary=False))).cascade == "small"
    assert door.policy.escalations == {"invalid_request": 1}


async def test_a_request_may_do_without() -> None:
    door = Door()
    reply = await door.ask(asking(cascade=False))
    assert (scores(reply), cascade_headers(reply), door.cascades.policies) == (UNSURE, {}, {})
    with pytest.raises(InvalidRequest, match="parameter 'cascade' of the request must be a bool, got 'no'"):
        await door.ask(asking(cascade="no"))
    assert (await door.ask(asking(cascade=True))).cascade == "large"


async def test_later_doors_apply_none() -> None:
    door = Door()
    reply = await door.ask(hops=1)
    assert (door.names, reply.cascade) == (["small"], "")


async def test_a_cascade_has_one_step() -> None:
    door = Door()
    door.reports("far", declaring(Cascade("huge", "p", 1.0), "large"), a_model_load("huge"))
    await door.ask()
    assert door.names == ["small", "large"]


async def test_a_door_that_does_not_hold_it_applies_what_its_holders_declare() -> None:
    door = Door(local=False)
    door.reports("other", declaring(msgspec.structs.replace(CASCADE, next="nope"), digest=OTHER_DIGEST))
    door.reports("edge", declaring(CASCADE))
    assert (await door.ask()).cascade == "large"


@pytest.mark.parametrize(
    ("declared", "asked", "kept"), [("site", {}, "site"), ("site", {"mesh_stay": "node"}, "node"), ("", {}, None)]
)
async def test_inputs_do_not_leave_where_the_small_one_may_not_by_way_of_the_large_one(
    declared: str, asked: dict[str, Any], kept: str | None
) -> None:
    door = Door()
    door.models = ScriptedModels(msgspec.structs.replace(declaring(CASCADE), stay=declared))
    door.cascades = Cascades(door._infer, View("me", door.watcher, door.models), random.Random(7))
    await door.ask(asking(**asked))
    assert door.names == ["small", "large"]
    assert door.asked[1][1].parameters.get("mesh_stay") == kept


@pytest.mark.parametrize(
    "cascade",
    [None, msgspec.structs.replace(CASCADE, confidence="vibes"), msgspec.structs.replace(CASCADE, next="small")],
    ids=["none", "of a later version", "to itself"],
)
async def test_what_is_not_understood_is_none(cascade: Cascade | None) -> None:
    door = Door(cascade)
    assert (await door.ask()).cascade == ""
    assert door.names == ["small"]


async def test_what_the_small_one_refuses_is_refused() -> None:
    door = Door()
    door.outcomes["small"] = Overloaded("busy")
    with pytest.raises(Overloaded):
        await door.ask()
    assert door.names == ["small"]


async def test_an_answer_without_confidence_is_answered_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    door.scores["small"] = [[7.0, -2.0, 1.0]]
    for _ in range(2):
        reply = await door.ask()
        assert cascade_headers(reply) == {"mesh-cascade": "small"}
    assert (door.names, door.policy.answered) == (["small"] * 2, {"unread": 2})
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "the cascade of model small is not applied: output 'p' does not hold probabilities: "
        "declare softmax = true for logits"
    )


async def test_a_caller_that_leaves_ends_both() -> None:
    door = Door()
    door.outcomes["large"] = asyncio.Event()
    asked = asyncio.ensure_future(door.cascades.infer(asking(), SMALL, Context(Deadline.after_ms(60_000))))
    await until(lambda: door.names == ["small", "large"])
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert door.policy.escalations == {}


async def test_a_sure_answer_is_audited_when_it_is_out() -> None:
    async with auditing() as door:
        hold = door.outcomes["large"] = asyncio.Event()
        reply = await door.ask(left_ms=30_000)
        assert (reply.cascade, door.policy.audits) == ("small", {})
        await until(lambda: door.names == ["small", "large"])
        _, request, context = door.asked[1]
        assert (request.priority, request.model) == (CLASSES, "large")
        assert context.deadline.left_ms() < 30_000
        hold.set()
        await until(lambda: door.policy.audits == {"differed": 1})


async def test_audits_learn_how_often_the_sure_answers_are_right() -> None:
    async with auditing(target=0.9) as door:
        for _ in range(60):
            await door.ask()
            await until(lambda: not door.cascades._auditing)
        assert door.policy.audits == {"differed": 60}
        assert door.policy.calibration.threshold > CASCADE.threshold
        await until(lambda: door.policy.calibration.agreement == 0.0)


async def test_audits_are_few_at_a_time_and_end_with_the_door() -> None:
    async with auditing() as door:
        door.outcomes["large"] = asyncio.Event()
        for _ in range(MAX_AUDITS + 3):
            await door.ask()
        await until(lambda: door.names.count("large") == MAX_AUDITS)
        assert door.policy.audits == {"dropped": 3}
    assert door.policy.audits == {"dropped": 3, "failed": MAX_AUDITS}


async def test_only_the_declared_share_is_audited() -> None:
    async with auditing(0.2) as door:
        for _ in range(500):
            await door.ask()
            await until(lambda: not door.cascades._auditing)
        assert 60 < door.policy.audits["differed"] < 140  # 100 expected, 9 the standard deviation


@pytest.mark.parametrize("error", [Overloaded("busy"), ModelNotFound("gone"), ModelRejected("odd")])
async def test_an_audit_that_fails_is_counted_and_hurts_nobody(error: Exception) -> None:
    async with auditing() as door:
        door.outcomes["large"] = error
        assert (await door.ask()).cascade == "small"
        await until(lambda: door.policy.audits == {"failed": 1})
        assert door.policy.calibration.agreement is None


async def test_garbage_of_the_large_one_is_no_answer() -> None:
    async with auditing() as door:
        real = door.response
        garbage = Reply(WireBody((b"{}",), None), "far", "peer")

        async def infer(request: InferRequest, identity: ModelIdentity, context: Context) -> Reply:
            if identity.name == "large":
                return garbage
            return Reply(encode_response(real("small"), request), "me")

        door.cascades._infer = infer
        await door.ask()
        await until(lambda: door.policy.audits == {"failed": 1})
        door.scores["small"] = [UNSURE]
        assert scores(await door.ask()) == UNSURE
        assert door.policy.escalations == {"protocol_error": 1}


async def test_another_declaration_or_another_large_one_is_learned_anew() -> None:
    async with auditing() as door:
        door.scores["small"] = [UNSURE]
        await door.ask()
        door.policy.calibration.threshold = 0.3  # as if calibrated
        assert (await door.ask()).cascade == "small"
        await until(lambda: not door.cascades._auditing)
        before = door.policy.calibration.agreement
        assert before == 0.0
        door.reports("far", a_model_load("large", digest=OTHER_DIGEST))
        door.cascades._next(door.policy)
        after, threshold = door.policy.calibration.agreement, door.policy.calibration.threshold
        assert (after, threshold) == (None, 0.3)
        assert door.models is not None
        door.models.loads = [declaring(msgspec.structs.replace(CASCADE, threshold=0.7))]
        assert (await door.ask()).cascade == "large"
        assert door.policy.calibration.threshold == 0.7
        assert door.policy.answered == {"large": 2, "small": 1}


async def test_models_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade_module, "MAX_MODELS", 3)
    door = Door()
    for number in range(10):
        door.cascades._policy(an_identity(f"m{number}"), CASCADE)
    assert list(door.cascades.policies) == [("m7", "1"), ("m8", "1"), ("m9", "1")]


def test_the_declaration_travels_in_reports() -> None:
    cascade = Cascade("large", "p", 0.8, "margin", softmax=True, target=0.95, audit=0.02, next_version="3")
    report = a_report(models=(declaring(cascade), a_model_load("plain")))
    assert decode_report(encode_report(report)) == report
    assert b'"cascade"' not in encode_report(a_report())
