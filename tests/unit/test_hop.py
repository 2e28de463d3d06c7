"""The headers of a hop: what a request carries on, what is believed of them, and what an answer says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh import hop, hop_bus, hop_http
from mesh.deadline import Deadline
from mesh.errors import (
    DeadlineExceeded,
    Draining,
    InstanceLost,
    InvalidRequest,
    MeshError,
    ModelNotReady,
    NodeUnreachable,
    Overloaded,
    ProtocolError,
)
from mesh.hop import MAX_VISITED, Context, Reply
from mesh.http_door import refusal
from mesh.oip.wire import WireBody
from tests.builders import DIGEST, a_load, an_identity
from tests.fakes import BODY, a_request

HOUR = Deadline.after_ms(3_600_000)


def headers(context: Context, up_ms: float = 0.0) -> dict[str, str]:
    return hop.request_headers(a_request(), an_identity(), context, "me", up_ms)


def test_a_hop_is_counted_and_names_who_held_the_request() -> None:
    first = hop.read_context(headers(Context(HOUR)), HOUR)
    assert (first.hops, first.visited, first.digest) == (1, ("me",), DIGEST)
    second = hop.request_headers(a_request(), an_identity(), first, "next", 0.0)
    assert (second[hop.HOPS], second[hop.VISITED]) == ("2", "me,next")
    assert int(second[hop.HEADER_LENGTH]) > 0


def test_milliseconds_left_at_the_predicted_arrival_travel() -> None:
    sent = float(headers(Context(Deadline.after_ms(60_000)), up_ms=20_000)[hop.DEADLINE])
    assert 0 < sent <= 40_000
    read = hop.read_context({hop.DEADLINE: "5000"}, HOUR)
    assert 0 < read.deadline.left_ms() <= 5_000
    assert float(headers(Context(Deadline.after_ms(0)), up_ms=99)[hop.DEADLINE]) >= 1.0


def test_without_headers_it_is_the_first_door() -> None:
    context = hop.read_context({}, HOUR)
    assert (context.hops, context.visited, context.digest, context.deadline) == (0, (), "", HOUR)


@pytest.mark.parametrize(
    "said",
    [{hop.DEADLINE: "soon"}, {hop.DEADLINE: "nan"}, {hop.HOPS: "two"}, {hop.HOPS: "1.5"}, {hop.DEADLINE: ""}],
)
def test_headers_that_are_no_numbers_are_refused(said: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        hop.read_context(said, HOUR)


def test_numbers_out_of_range_are_bounded() -> None:
    context = hop.read_context({hop.DEADLINE: "-5", hop.HOPS: "-3", hop.VISITED: ",".join("abcdefghijklm")}, HOUR)
    assert context.deadline.expired
    assert context.hops == 0
    assert context.visited == tuple("abcdefghijklm"[-MAX_VISITED:])
    assert hop.read_context({hop.DEADLINE: "inf"}, HOUR).deadline.left_ms() <= 86_400_000


def test_a_reply_there_and_back() -> None:
    reply = Reply(WireBody((b"{}xyz",), 2), "peer", "local", 1, a_load(wait_ms=3.0), 12.5)
    said = hop.reply_headers(reply, want_load=True)
    read = hop.read_reply(b"{}xyz", said, "peer")
    assert (read.node, read.route, read.hops, read.load, read.time_ms) == ("peer", "peer", 1, reply.load, 12.5)
    assert read.body == reply.body
    plain = hop.reply_headers(Reply(BODY, "peer", "local", 0), want_load=False)
    assert plain == {hop.NODE: "peer", hop.ROUTE: "local", hop.HOPS: "0"}


@pytest.mark.parametrize(("ran", "seen"), [("local", "peer"), ("peer", "peer"), ("cloud", "cloud"), ("moon", "peer")])
def test_where_it_ran_as_seen_from_here(ran: str, seen: str) -> None:
    assert hop.read_reply(b"{}", {hop.ROUTE: ran}, "peer").route == seen


@pytest.mark.parametrize(
    "said",
    [
        {hop.HEADER_LENGTH: "x"},
        {hop.HEADER_LENGTH: "0"},
        {hop.HEADER_LENGTH: "3"},
        {hop.HEADER_LENGTH: "-1"},
        {hop.HOPS: "x"},
        {hop.TIME: "x"},
        {hop.TIME: "nan"},
        {hop.LOAD: "x"},
    ],
)
def test_what_is_no_answer_is_a_protocol_error(said: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        hop.read_reply(b"{}", said, "peer")


def test_a_request_says_how_busy_its_sender_is_and_garbage_costs_nothing() -> None:
    load = a_load(seq=9, wait_ms=250.0)
    said = hop.request_headers(a_request(), an_identity(), Context(HOUR, 1, ("first",)), "me", 0.0, load)
    read = hop.read_context(said, HOUR)
    assert (read.caller, read.load) == ("me", load)
    assert hop.LOAD not in headers(Context(HOUR))
    assert hop.read_context(said | {hop.LOAD: "x"}, HOUR).load is None
    assert hop.read_context({hop.LOAD: load.header()}, HOUR).caller == ""


ERRORS = [
    Overloaded("full", retry_after_s=2.0), Draining("it leaves"), DeadlineExceeded("late"), ModelNotReady("not yet"),
    NodeUnreachable("of another"), InstanceLost("died"), InvalidRequest("wrong"),
]  # fmt: skip


def over_http(error: MeshError) -> MeshError:
    answer = refusal(error)
    lines = answer.head.decode("latin-1").split("\r\n")
    said = {name: value for name, _, value in (line.partition(": ") for line in lines if line)}
    return hop_http.read_error(answer.status, said, b"".join(answer.parts))


def over_the_bus(error: MeshError) -> MeshError:
    said = {name.lower(): value for name, value in hop_bus.error_headers(error).items()}
    found = hop_bus.read_error(said)
    assert found is not None
    return found


@pytest.mark.parametrize("carried", [over_http, over_the_bus])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_an_error_carries_the_load_of_who_answered_it(
    carried: Callable[[MeshError], MeshError], error: MeshError
) -> None:
    error.load = None
    plain = carried(error)
    assert plain.load is None
    error.load = a_load(seq=3, wait_ms=70.0, in_flight=4)
    read = carried(error)
    assert (type(read), read.text, read.retry_after_s) == (type(plain), error.text, error.retry_after_s)
    assert read.load == error.load


@pytest.mark.parametrize("text", ["x", "1;2;ready;nan;0;0;0;0;0;", "1" * 5000])
def test_an_error_beside_what_is_no_load_is_still_that_error(text: str) -> None:
    read = hop.answered(Overloaded("full"), {hop.LOAD: text})
    assert isinstance(read, Overloaded)
    assert read.load is None
