"""What a way learns: round trips, bandwidth in both directions, stalls, and the bytes that go before others.

Not here: which ways share a wire (``test_wires``), what a decision makes of it (``test_estimator``).
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.link import (
    FADE_S,
    LAN,
    MAX_BYTES_PER_MS,
    MIN_BYTES_PER_MS,
    PATIENCE_MS,
    SAMPLE_BYTES,
    WAN,
    Link,
    Wire,
)

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
MEGABYTE = 1_000_000
SERVER_MS = 20.0


def carry(link: Link, nbytes: int, bytes_per_ms: float, rtt_ms: float, now: float, reply: int = 100) -> float:
    """One request alone on a link that really has this bandwidth up and this round trip; returns when it ended."""
    token = link.sent(nbytes, now, SERVER_MS)
    elapsed_ms = rtt_ms + nbytes / bytes_per_ms + SERVER_MS
    link.answered(token, reply, elapsed_ms, SERVER_MS, now + elapsed_ms / 1e3)
    return now + elapsed_ms / 1e3


def test_an_unmeasured_link_is_its_prior() -> None:
    assert Link(LAN).network_ms(50_000, 50_000, 0.0) == pytest.approx(1.0 + 1.0 + 1.0)
    assert Link(WAN).network_ms(62_500, 6_250, 0.0) == pytest.approx(10.0 + 10.0 + 1.0)


def test_the_first_ping_replaces_the_prior_and_later_ones_smooth() -> None:
    link = Link(LAN)
    link.pinged(40.0)
    assert (link.rtt_ms, link.rttvar_ms) == (40.0, 20.0)
    link.pinged(48.0)
    assert (link.rtt_ms, link.rttvar_ms) == (41.0, 17.0)


def test_small_requests_teach_the_round_trip_without_the_server_time() -> None:
    link = Link(LAN)
    for at in range(100):
        token = link.sent(100, float(at), 100.0)
        link.answered(token, 200, elapsed_ms=130.0, server_ms=100.0, now=at + 0.13)
    assert link.rtt_ms == pytest.approx(30.0, rel=0.01)
    assert link.up.rate(100.0) == LAN.bytes_per_ms


def test_large_requests_teach_the_bandwidth_they_met() -> None:
    link, now = Link(WAN), 0.0
    link.pinged(40.0)
    for _ in range(8):
        now = carry(link, MEGABYTE, 1_000.0, 40.0, now)
    assert link.up.rate(now) == pytest.approx(1_000.0, rel=0.05)
    assert (link.down.rate(now), link.rtt_ms) == (WAN.bytes_per_ms, 40.0)


def test_large_replies_teach_the_way_back() -> None:
    """Long after the start of the process: what is learned is not taken for old."""
    link, now = Link(LAN), 1e6
    link.pinged(1.0)
    for _ in range(12):
        token = link.sent(100, now)
        now += 1.001
        link.answered(token, MEGABYTE, elapsed_ms=1_001.0, server_ms=0.0, now=now)
    assert link.down.rate(now) == pytest.approx(1_000.0, rel=0.05)
    assert link.up.rate(now) == LAN.bytes_per_ms


def test_slowness_is_believed_sooner_than_speed() -> None:
    slower, faster = Link(WAN), Link(WAN)
    slow_s = carry(slower, MEGABYTE, WAN.bytes_per_ms / 4, WAN.rtt_ms, 0.0)
    fast_s = carry(faster, MEGABYTE, WAN.bytes_per_ms * 4, WAN.rtt_ms, 0.0)
    assert slower.up.rate(slow_s) == pytest.approx(WAN.bytes_per_ms * (1 - 0.5 * 3 / 4), rel=1e-3)
    assert faster.up.rate(fast_s) == pytest.approx(WAN.bytes_per_ms * (1 + 0.1 * 3), rel=1e-3)


def test_requests_behind_each_other_do_not_make_a_wire_look_slow() -> None:
    """Ten megabytes sent at once over a wire that is as fast as its prior: each waits for those before it."""
    link, each_ms = Link(WAN), MEGABYTE / WAN.bytes_per_ms
    tokens = [link.sent(MEGABYTE, 0.0) for _ in range(10)]
    assert link.network_ms(MEGABYTE, 0, 0.0) == pytest.approx(WAN.rtt_ms + 11 * each_ms)
    for place, token in enumerate(tokens, 1):
        elapsed_ms = WAN.rtt_ms + place * each_ms
        link.answered(token, 0, elapsed_ms, 0.0, elapsed_ms / 1e3)
        assert link.up.rate(elapsed_ms / 1e3) == pytest.approx(WAN.bytes_per_ms)
    assert (link.up.own_bytes, link.up.ahead(9.0)) == (0, 0.0)


def test_what_is_under_way_drains() -> None:
    wire = Wire(1_000.0)
    wire.sent(MEGABYTE, 500.0, 0.0)
    assert [wire.ahead(at) for at in (0.0, 0.25, 1.0, 1.2)] == pytest.approx([MEGABYTE, MEGABYTE * 0.75, 0.0, 0.0])
    assert wire.ms(MEGABYTE, 0.25) == pytest.approx(1_750.0)


def test_a_stall_lowers_the_bandwidth_before_any_answer() -> None:
    """A megabyte that takes ten times what it should: nothing came back yet, and the next one is predicted so."""
    link = Link(WAN)
    link.sent(MEGABYTE, 0.0, SERVER_MS)
    expected_s = (WAN.rtt_ms + SERVER_MS + MEGABYTE / WAN.bytes_per_ms) / 1e3
    assert link.up.rate(expected_s + PATIENCE_MS / 1e3 * 0.9) == WAN.bytes_per_ms
    now = 1.6
    assert link.up.rate(now) == pytest.approx(MEGABYTE / (now * 1e3 - WAN.rtt_ms - SERVER_MS))
    assert link.up.remaining(now) == MEGABYTE, "all that is not answered"
    assert link.network_ms(MEGABYTE, 0, now) > 1.9e3 * now
    assert link.up.rate(1e9) == MIN_BYTES_PER_MS


def test_few_bytes_that_are_late_do_not_ban_many() -> None:
    link = Link(WAN)
    link.sent(100, 0.0, SERVER_MS)
    assert link.up.rate(0.1) == pytest.approx(SAMPLE_BYTES / (100.0 - WAN.rtt_ms - SERVER_MS))


def test_a_wire_that_never_idles_forgets_what_it_was_slow_for() -> None:
    """Taken for a tenth of what it is, a request seems to need a second; the first answer shows that it did not."""
    link, true = Link(WAN), WAN.bytes_per_ms * 10
    link.pinged(40.0)
    now, tokens = 0.0, []
    for _ in range(20):
        tokens.append((now, link.sent(MEGABYTE, now)))
        now += 0.03
    assert link.up.remaining(now) > 15 * MEGABYTE
    sent_s, token = tokens[-2]
    answered_s = sent_s + (40.0 + MEGABYTE / true) / 1e3
    link.answered(token, 100, (answered_s - sent_s) * 1e3, 0.0, answered_s)
    assert link.up.remaining(answered_s + 0.2) < MEGABYTE


def test_a_stall_that_ends_without_an_answer_is_remembered() -> None:
    link, now = Link(WAN), 10.0
    token = link.sent(MEGABYTE, 0.0)
    link.failed(token, now)
    seen = MEGABYTE / (now * 1e3 - WAN.rtt_ms)
    assert link.up.rate(now) == pytest.approx((WAN.bytes_per_ms + seen) / 2)
    assert (link.up.own_bytes, link.up.remaining(now)) == (0, 0.0)


@pytest.mark.parametrize(("nbytes", "ended_s"), [(MEGABYTE, 0.1), (100, 10.0)], ids=["not overdue", "small"])
def test_other_failures_teach_no_bandwidth(nbytes: int, ended_s: float) -> None:
    link = Link(WAN)
    link.failed(link.sent(nbytes, 0.0), ended_s)
    assert (link.up.rate(ended_s), link.up.own_bytes) == (WAN.bytes_per_ms, 0)


def test_a_node_that_hangs_is_not_a_wire_that_stalls() -> None:
    """What was sent later, is no smaller and is answered went over the same uplink: the wire moves."""
    up, down = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
    hung, well = Link(WAN, up, down), Link(WAN, up, down)
    token = hung.sent(MEGABYTE, 0.0)
    now = carry(well, MEGABYTE, WAN.bytes_per_ms / 2, WAN.rtt_ms, 0.0)
    assert up.rate(now + 9.0) == pytest.approx(WAN.bytes_per_ms, rel=0.01)
    assert up.remaining(now + 9.0) == 0.0
    hung.failed(token, now + 9.0)
    assert up.rate(now + 9.0) == pytest.approx(WAN.bytes_per_ms, rel=0.01)


@pytest.mark.parametrize(("answered", "stuck_at"), [(100_000, 0.0), (MEGABYTE, 1.0)], ids=["smaller", "earlier"])
def test_other_answers_do_not_hide_a_stall(answered: int, stuck_at: float) -> None:
    up, down = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
    stuck, well = Link(WAN, up, down), Link(WAN, up, down)
    if stuck_at == 0.0:
        stuck.sent(MEGABYTE, 0.0)
    carry(well, answered, WAN.bytes_per_ms, WAN.rtt_ms, 0.0)
    if stuck_at > 0.0:
        stuck.sent(MEGABYTE, stuck_at)
    assert up.rate(11.0) < 2 * MEGABYTE / 1e4


def test_one_sample_does_not_lift_a_bandwidth_out_of_all_measure() -> None:
    link = Link(WAN)
    link.pinged(WAN.rtt_ms)
    now = carry(link, MEGABYTE, 1e9, WAN.rtt_ms, 0.0)
    assert link.up.rate(now) == pytest.approx(WAN.bytes_per_ms * 1.3)


def test_an_idle_wire_returns_to_its_prior_but_a_busy_one_does_not() -> None:
    link = Link(LAN)
    link.pinged(1.0)
    at = carry(link, MEGABYTE, 500.0, 1.0, 0.0)
    learned = link.up.rate(at)
    assert learned < 0.6 * LAN.bytes_per_ms
    assert link.up.rate(at + FADE_S) == pytest.approx(
        LAN.bytes_per_ms + (learned - LAN.bytes_per_ms) * 0.3679, rel=1e-3
    )
    assert link.up.rate(at + 20 * FADE_S) == pytest.approx(LAN.bytes_per_ms)
    token = link.sent(1, at, inf)
    assert link.up.rate(at + 20 * FADE_S) == learned
    link.up.ended(token, at + 20 * FADE_S)
    assert link.up.rate(at + 20 * FADE_S) == learned, "it was in use until now"


def test_using_a_wire_again_goes_on_from_the_faded_value() -> None:
    link = Link(LAN)
    at = carry(link, MEGABYTE, 500.0, 1.0, 0.0) + 20 * FADE_S
    link.sent(0, at)
    assert link.up.rate(at) == pytest.approx(LAN.bytes_per_ms)


def test_neighbours_bytes_go_before_ours_and_drain() -> None:
    wire = Wire(1_000.0)
    wire.told("n1", 50_000, 0.0)
    wire.told("n2", 10_000, 0.0)
    assert wire.ms(1_000, 0.0) == pytest.approx(61.0)
    assert wire.ms(1_000, 0.02) == pytest.approx(31.0)
    assert wire.remaining(0.0) == 0.0, "a node tells of its own only"
    wire.told("n1", 0, 0.0)
    assert wire.ms(1_000, 0.0) == pytest.approx(11.0)
    assert wire.ms(1_000, 9.0) == pytest.approx(1.0)


@pytest.mark.parametrize("late", [False, True])
def test_tokens_of_unknown_requests_are_ignored(late: bool) -> None:
    link = Link(LAN)
    token = link.sent(MEGABYTE, 0.0)
    link.up.ended(token, 0.1)
    for unknown in (token, token + 1, 0, -1):
        if late:
            link.failed(unknown, 9.0)
        else:
            link.answered(unknown, MEGABYTE, 9e3, 1.0, 9.0)
        assert link.up.ended(unknown, 9.0) is None
    assert (link.up.rate(9.0), link.down.rate(9.0), link.measured) == (LAN.bytes_per_ms, LAN.bytes_per_ms, False)
    assert (link.up.own_bytes, link.up.ahead(9.0)) == (0, 0.0)


def bandwidth_learned(senders: int, bytes_per_ms: float, luck: Random) -> float:
    """Of an uplink of that bandwidth and 40 ms of round trip, carrying one request after the other.

    Each sender waits for its answer before its next request; the servers have no queues. Sixty answers are seen.
    """
    up, down = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
    links = [Link(WAN, up, down) for _ in range(senders)]
    free_ms, answered = 0.0, 0
    events: list[tuple[float, int, float, int]] = []
    """At, sender; of an answer when the request was sent, and its token."""
    for sender, link in enumerate(links):
        link.pinged(40.0)
        events.append((luck.random() * 50.0, sender, -1.0, 0))
    while events:
        now_ms, sender, sent_ms, token = heappop(events)
        link = links[sender]
        if sent_ms < 0.0:
            nbytes = luck.choice((150_000, 600_000))
            free_ms = max(free_ms, now_ms) + nbytes / bytes_per_ms
            token = link.sent(nbytes, now_ms / 1e3, SERVER_MS)
            heappush(events, (free_ms + 40.0 + SERVER_MS, sender, now_ms, token))
            continue
        link.answered(token, 1_000, now_ms - sent_ms, SERVER_MS, now_ms / 1e3)
        answered += 1
        if answered < 60:
            heappush(events, (now_ms + luck.random() * 20.0, sender, -1.0, 0))
    assert [link.rtt_ms for link in links] == [40.0] * senders
    return up.rate(now_ms / 1e3)


@pytest.mark.parametrize("senders", [1, 2, 3, 4])
@pytest.mark.parametrize("bytes_per_ms", [600.0, 2_000.0, WAN.bytes_per_ms, 25_000.0])
def test_learned_bandwidth_converges_on_the_true_one(senders: int, bytes_per_ms: float) -> None:
    """From a tenth to four times the prior, whatever number of senders share it."""
    assert bandwidth_learned(senders, bytes_per_ms, Random(senders)) == pytest.approx(bytes_per_ms, rel=0.3)


step = st.tuples(
    st.sampled_from(["send", "answer", "fail", "leave", "ping", "told"]),
    st.integers(0, 10**8),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.floats(0, 100),
)


@property_test
@given(st.lists(step, max_size=40))
def test_no_history_breaks_a_link(story: list[tuple[str, int, float, float, float]]) -> None:
    link, now, tokens = Link(WAN), 0.0, [0]
    for what, nbytes, elapsed_ms, server_ms, pause in story:
        now += pause
        if what == "send":
            tokens.append(link.sent(nbytes, now, server_ms))
        elif what == "answer":
            link.answered(tokens[nbytes % len(tokens)], nbytes, elapsed_ms, server_ms, now)
        elif what == "fail":
            link.failed(tokens[nbytes % len(tokens)], now)
        elif what == "leave":
            link.up.ended(tokens[nbytes % len(tokens)], now)
        elif what == "told":
            link.up.told(str(nbytes % 3), nbytes, now)
        else:
            link.pinged(elapsed_ms)
        for wire in (link.up, link.down):
            assert MIN_BYTES_PER_MS <= wire.rate(now) <= MAX_BYTES_PER_MS
        own = sum(size for size, _ in link.up.under_way.values())
        assert link.up.own_bytes == own
        assert 0.0 <= link.up.remaining(now) <= own
        assert link.up.remaining(now) <= link.up.ahead(now) < inf
        assert 0.0 <= link.rtt_ms <= link.network_ms(nbytes, nbytes, now) < inf


@property_test
@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 2)), max_size=6),
    st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 10**8), st.floats(0, 100), st.floats(0, 1e4),
)  # fmt: skip
def test_more_of_anything_never_predicts_a_shorter_way(
    sent: list[tuple[int, float]], nbytes: int, reply: int, more: int, told: float, rtt_ms: float
) -> None:
    link, now = Link(WAN), 0.0
    for size, pause in sent:
        now += pause
        link.sent(size, now, SERVER_MS)
    base = link.network_ms(nbytes, reply, now)
    assert link.network_ms(nbytes + more, reply, now) >= base
    assert link.network_ms(nbytes, reply + more, now) >= base
    link.up.told("n1", more, now)
    assert link.network_ms(nbytes, reply, now) >= base
    link.rtt_ms += rtt_ms
    assert link.network_ms(nbytes, reply, now) >= base
    link.sent(more, now)
    assert link.network_ms(nbytes, reply, now) >= base
    assert nbytes == 0 or link.network_ms(nbytes, reply, now) > link.rtt_ms


def test_sample_sizes() -> None:
    """The least that teaches bandwidth teaches it, one byte less teaches the round trip."""
    for nbytes, rtt_ms in ((SAMPLE_BYTES - 1, 88.0), (SAMPLE_BYTES, WAN.rtt_ms)):
        link = Link(WAN)
        carry(link, nbytes, WAN.bytes_per_ms, 88.0, 0.0)
        assert link.rtt_ms == pytest.approx(rtt_ms, rel=0.05)
        assert (link.up.rate(0.2) < WAN.bytes_per_ms) == (nbytes == SAMPLE_BYTES)
