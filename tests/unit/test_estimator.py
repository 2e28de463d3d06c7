"""The estimator: what a link learns, how a reported wait ages, monotonicity of the prediction, own dispatches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from mesh.estimator import BUS, FADE_S, LAN, LOCAL_MS, MAX_BYTES_PER_MS, Ask, Dispatches, Estimate, Link, estimate
from tests.builders import a_candidate, a_local, a_model_load, an_ask

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
MEGABYTE = 1_000_000


def carry(link: Link, nbytes: int, bytes_per_ms: float, rtt_ms: float, now: float) -> None:
    """One request over a link that really has this bandwidth and round trip."""
    ahead = link.sent(nbytes, now)
    elapsed_ms = rtt_ms + nbytes / bytes_per_ms + 20.0
    link.answered(nbytes, 100, elapsed_ms, 20.0, now + elapsed_ms / 1e3, ahead)


def test_priors_per_kind() -> None:
    assert Link.lan().network_ms(50_000, 0, 0.0) == pytest.approx(1.0 + 1.0)
    assert Link.bus().network_ms(62_500, 6_250, 0.0) == pytest.approx(10.0 + 10.0 + 1.0)


def test_the_first_ping_replaces_the_prior_and_later_ones_smooth() -> None:
    link = Link.lan()
    link.pinged(40.0, 1.0)
    assert (link.rtt_ms, link.rttvar_ms) == (40.0, 20.0)
    link.pinged(48.0, 2.0)
    assert (link.rtt_ms, link.rttvar_ms) == (41.0, 17.0)


def test_small_requests_teach_the_round_trip_without_the_server_time() -> None:
    link = Link.lan()
    for at in range(100):
        link.sent(100, float(at))
        link.answered(100, 200, elapsed_ms=130.0, server_ms=100.0, now=at + 0.13)
    assert link.rtt_ms == pytest.approx(30.0, rel=0.01)
    assert (link.up_bytes_per_ms, link.queued_bytes) == (LAN.bytes_per_ms, 0)


def test_large_requests_teach_the_bandwidth_they_met() -> None:
    link = Link.bus()
    link.pinged(40.0, 0.0)
    for at in range(8):
        carry(link, MEGABYTE, 1_000.0, 40.0, float(at))
    assert link.up_bytes_per_ms == pytest.approx(1_000.0, rel=0.25)
    assert link.down_bytes_per_ms == BUS.bytes_per_ms
    assert link.rtt_ms == 40.0


def test_large_replies_teach_the_way_back() -> None:
    link = Link.lan()
    for at in range(8):
        link.sent(100, float(at))
        link.answered(100, MEGABYTE, elapsed_ms=1_001.0, server_ms=0.0, now=at + 1.0)
    assert link.down_bytes_per_ms == pytest.approx(1_000.0, rel=0.25)
    assert link.up_bytes_per_ms == LAN.bytes_per_ms


def test_slowness_is_believed_sooner_than_speed() -> None:
    slower, faster = Link.bus(), Link.bus()
    carry(slower, MEGABYTE, BUS.bytes_per_ms / 4, BUS.rtt_ms, 0.0)
    carry(faster, MEGABYTE, BUS.bytes_per_ms * 4, BUS.rtt_ms, 0.0)
    assert slower.up_bytes_per_ms == pytest.approx(BUS.bytes_per_ms * (1 - 0.5 * 3 / 4), rel=0.001)
    assert faster.up_bytes_per_ms == pytest.approx(BUS.bytes_per_ms * (1 + 0.1 * 3), rel=0.001)


def test_requests_queued_behind_each_other_do_not_make_a_link_look_slow() -> None:
    """Ten megabytes sent at once over a link that is as fast as its prior: each waits for those ahead of it."""
    link, each_ms = Link.bus(), MEGABYTE / BUS.bytes_per_ms
    aheads = [link.sent(MEGABYTE, 0.0) for _ in range(10)]
    assert link.network_ms(MEGABYTE, 0, 0.0) == pytest.approx(BUS.rtt_ms + 11 * each_ms)
    for place, ahead in enumerate(aheads, 1):
        elapsed_ms = BUS.rtt_ms + place * each_ms
        link.answered(MEGABYTE, 0, elapsed_ms, 0.0, elapsed_ms / 1e3, ahead)
    assert link.up_bytes_per_ms == pytest.approx(BUS.bytes_per_ms)
    assert link.queued_bytes == 0


def test_an_idle_link_returns_to_its_prior_but_a_busy_one_does_not() -> None:
    link = Link.lan()
    carry(link, MEGABYTE, 500.0, LAN.rtt_ms, 0.0)
    learned, at = link.up_bytes_per_ms, link.updated_at
    busy = replace(link, queued_bytes=1)
    assert busy.network_ms(0, 0, at + 100 * FADE_S) == pytest.approx(link.rtt_ms + 1 / learned)
    assert link.network_ms(MEGABYTE, 0, at) == pytest.approx(link.rtt_ms + MEGABYTE / learned)
    assert link.network_ms(MEGABYTE, 0, at + 10 * FADE_S) == pytest.approx(link.rtt_ms + 20.0, rel=0.01)
    # Using it again goes on from the faded value, not from the old one.
    link.sent(0, at + 10 * FADE_S)
    assert link.up_bytes_per_ms == pytest.approx(LAN.bytes_per_ms, rel=0.01)


def test_an_answer_to_nothing_noted_leaves_no_debt() -> None:
    link = Link.lan()
    link.answered(100, 100, elapsed_ms=2.0, server_ms=1.0, now=1.0)
    assert link.queued_bytes == 0


def test_a_failed_request_leaves_the_queue_and_teaches_no_bandwidth() -> None:
    link = Link.lan()
    link.sent(MEGABYTE, 0.0)
    link.failed(MEGABYTE, 1.0)
    link.failed(MEGABYTE, 1.0)
    assert link == replace(Link.lan(), updated_at=1.0)


@property_test
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**8), st.integers(0, 10**8), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 100)
        ),
        max_size=20,
    )
)
def test_no_history_breaks_a_link(history: list[tuple[int, int, float, float, float]]) -> None:
    link, now = Link.bus(), 0.0
    for sent, received, elapsed_ms, server_ms, pause in history:
        ahead = link.sent(sent, now)
        now += pause
        link.answered(sent, received, elapsed_ms, server_ms, now, ahead)
        assert 0 < link.up_bytes_per_ms <= MAX_BYTES_PER_MS
        assert 0 < link.down_bytes_per_ms <= MAX_BYTES_PER_MS
        assert link.rtt_ms >= 0
        assert link.queued_bytes == 0


def test_parts_of_a_local_prediction() -> None:
    here = a_local(wait_ms=30.0, heard_at=2.0, own_ms=5.0, service_ms=8.0)
    assert estimate(here, an_ask(), 2.0, 99.0) == Estimate(LOCAL_MS, 35.0, 8.0)
    assert estimate(here, an_ask(), 2.0, 99.0).total_ms == pytest.approx(43.0 + LOCAL_MS)


def test_a_reported_wait_drains_with_its_age_but_not_below_our_own_unfinished_work() -> None:
    node = a_candidate(wait_ms=100.0, heard_at=10.0, own_ms=20.0)
    waits = [estimate(node, an_ask(), 10.0 + age, 1.0).wait_ms for age in (0.0, 0.04, 0.1, 60.0)]
    assert waits == pytest.approx([120.0, 80.0, 20.0, 20.0])


def test_an_unknown_service_time_is_the_prior() -> None:
    assert estimate(a_candidate(service_ms=0.0), an_ask(), 0.0, 7.0).service_ms == 7.0
    assert estimate(a_candidate(service_ms=3.0), an_ask(), 0.0, 7.0).service_ms == 3.0


figure = st.floats(0.0, 1e6)


@property_test
@given(
    wait=figure, own=figure, service=st.floats(0.01, 1e5), rtt=figure, nbytes=st.integers(0, 10**9),
    age=st.floats(0, 9), more=figure, queued=st.integers(0, 10**9), reply=st.integers(0, 10**8),
)  # fmt: skip
def test_more_of_anything_never_predicts_an_earlier_answer(
    wait: float, own: float, service: float, rtt: float, nbytes: int, age: float, more: float, queued: int, reply: int
) -> None:
    link = Link(rtt_ms=rtt, queued_bytes=queued)
    node = a_candidate(wait_ms=wait, own_ms=own, service_ms=service, link=link)
    ask = Ask(1000.0, nbytes, reply)

    def total(**fields: object) -> float:
        return estimate(structs.replace(node, **fields), ask, age, 1.0).total_ms

    base = total()
    assert base >= own + service + rtt
    assert total(wait_ms=wait + more) >= base
    assert total(own_ms=own + more) >= base
    assert total(model=a_model_load(service_ms=service + more)) >= base
    assert total(link=replace(link, rtt_ms=rtt + more)) >= base
    assert total(link=replace(link, queued_bytes=queued + int(more))) >= base
    assert total(heard_at=-more) <= base
    assert estimate(node, replace(ask, nbytes=nbytes + int(more)), age, 1.0).total_ms >= base
    assert estimate(node, replace(ask, reply_bytes=reply + int(more)), age, 1.0).total_ms >= base


def test_dispatches_count_what_is_unfinished_and_unreported() -> None:
    sent = Dispatches()
    first = sent.add("n1", 10.0, 1.0)
    sent.add("n1", 20.0, 2.0)
    third = sent.add("n1", 40.0, 3.0)
    sent.add("n2", 80.0, 3.0)
    assert [sent.since("n1", at) for at in (0.0, 2.0, 2.5, 3.5)] == [70.0, 60.0, 40.0, 0.0]
    assert sent.in_flight("n1") == 3
    sent.done("n1", third)
    sent.done("n1", third)
    assert (sent.since("n1", 0.0), sent.in_flight("n1")) == (30.0, 2)
    sent.done("n2", first)
    assert (sent.since("n2", 0.0), sent.in_flight("nobody"), sent.since("nobody", 0.0)) == (80.0, 0, 0.0)


@property_test
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50), st.booleans()), max_size=40), st.floats(0, 40))
def test_dispatches_agree_with_a_plain_sum(story: list[tuple[str, float, bool]], heard_at: float) -> None:
    sent = Dispatches()
    open_requests: list[tuple[int, str, float, float]] = []
    for at, (node, service_ms, finish) in enumerate(story):
        open_requests.append((sent.add(node, service_ms, float(at)), node, service_ms, float(at)))
        if finish:
            token, at_node, *_ = open_requests.pop(len(open_requests) // 2)
            sent.done(at_node, token)
    for node in "abc":
        here = [(service_ms, at) for _, at_node, service_ms, at in open_requests if at_node == node]
        assert sent.in_flight(node) == len(here)
        assert sent.since(node, heard_at) == pytest.approx(sum(ms for ms, at in here if at >= heard_at))
