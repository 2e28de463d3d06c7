"""The columns of an outlook: queues carried on between reports, own sends, shared uplinks, slots that are used again.

Not here: what is predicted from them (``test_estimator``).
"""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.link import LAN, WAN, Link, Wire
from mesh.messages import BINS, CLASSES, EDGES_MS, Queued
from mesh.outlook import LOCAL_MS, UNKNOWN_MS, WIDTH, Outlook, Sent, bin_of, row_of

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 1000.0
MODEL = "resnet"


def an_outlook(nodes: int = 1) -> Outlook:
    outlook = Outlook(2)
    for at in range(nodes):
        assert outlook.slot(f"n{at}", 1.0, Link(LAN)) == at
    return outlook


def sent(arrives_s: float = NOW, work_ms: float = 10.0, left_s: float = 10.0, level: int = 0) -> Sent:
    return Sent(arrives_s, level, arrives_s + left_s, work_ms)


def work_ms(outlook: Outlook, at: int = 0) -> float:
    """All there is to do, at the moment up to which it is reckoned."""
    return float(outlook.free[at] + outlook.queue[at, -1])


def test_bins_and_classes() -> None:
    assert [bin_of(ms) for ms in (-5.0, 25.0, 25.1, EDGES_MS[-1], 1e9)] == [0, 0, 1, len(EDGES_MS) - 1, BINS - 1]
    assert [row_of(level) for level in (1, 2, CLASSES, 0, 99)] == [0, BINS, *[(CLASSES - 1) * BINS] * 3]


def test_a_report_is_what_runs_and_what_is_queued_in_the_order_it_is_served() -> None:
    outlook = an_outlook()
    outlook.hear(0, NOW, 100.0, ((1, (10.0,)), (16, (0.0, 5.0, 15.0))))
    assert outlook.free[0] == pytest.approx(70.0)
    queue = outlook.queue[0]
    assert len(queue) == WIDTH + 1
    assert (queue[0], queue[1], queue[row_of(16) + 1], queue[row_of(16) + 2], queue[-1]) == (0, 10, 10, 15, 30)
    outlook.hear(0, NOW, 3.0, ())
    assert (outlook.free[0], work_ms(outlook), outlook.busy[0]) == (3.0, 3.0, False)
    outlook.hear(0, NOW, 1.0, ((16, (4.0,)),))
    assert outlook.free[0] == 0.0, "a wait that is less than what is queued"


def test_own_sends_are_counted_once() -> None:
    """A report from before the arrival cannot know of the request, one from after it does."""
    outlook = an_outlook()
    outlook.hear(0, NOW, 0.0, ())
    outlook.send(0, sent(NOW + 0.010, work_ms=10.0))
    assert work_ms(outlook) == 10.0
    outlook.hear(0, NOW + 0.009, 20.0, ())
    assert [outlook.free[0], work_ms(outlook)] == pytest.approx([19.0, 29.0])
    outlook.hear(0, NOW + 0.010, 20.0, ())
    assert work_ms(outlook) == 20.0


def test_an_ended_request_is_not_added_to_the_next_report() -> None:
    outlook = an_outlook()
    outlook.hear(0, NOW, 0.0, ())
    first, second = outlook.send(0, sent(NOW + 0.5)), outlook.send(0, sent(NOW + 0.5))
    assert outlook.in_flight(0) == 2
    outlook.ended(0, first)
    outlook.ended(0, first)
    outlook.hear(0, NOW + 0.1, 0.0, ())
    assert (outlook.in_flight(0), work_ms(outlook)) == (1, 10.0)
    outlook.ended(0, second)
    outlook.hear(0, NOW + 0.1, 0.0, ())
    assert (outlook.in_flight(0), work_ms(outlook), outlook.busy[0]) == (0, 0.0, False)


def test_work_drains_until_the_next_send_arrives() -> None:
    """First the run in progress, then the queue from its front."""
    outlook = an_outlook()
    outlook.hear(0, NOW, 40.0, ((1, (10.0,)), (16, (20.0,))))
    outlook.send(0, sent(NOW + 0.015, work_ms=5.0, level=16))
    assert (outlook.free[0], outlook.queue[0, 1], outlook.queue[0, -1]) == pytest.approx((0.0, 5.0, 30.0))
    outlook.send(0, sent(NOW + 0.025, work_ms=5.0, level=16))
    assert (outlook.queue[0, 1], outlook.queue[0, -1]) == pytest.approx((0.0, 25.0))
    outlook.send(0, sent(NOW + 9.0, work_ms=5.0, level=16))
    assert outlook.queue[0, -1] == pytest.approx(5.0), "after a pause only the new one is there"


queued = st.dictionaries(
    st.integers(1, CLASSES), st.lists(st.floats(0, 1e4), min_size=1, max_size=BINS).map(tuple), max_size=4
).map(lambda found: tuple(sorted(found.items())))
sends = st.builds(Sent, st.floats(0, 20), st.integers(0, 20), st.floats(0, 30), st.floats(0, 1e3))
news = st.one_of(sends, st.tuples(st.floats(0, 20), st.floats(0, 1e5), queued), st.integers(0, 50))


@property_test
@given(st.lists(news, max_size=40))
def test_no_queue_is_ever_negative_or_out_of_order(story: list[Sent | tuple[float, float, Queued] | int]) -> None:
    outlook = an_outlook()
    for event in story:
        if isinstance(event, Sent):
            outlook.send(0, event)
        elif isinstance(event, int):
            outlook.ended(0, event)
        else:
            outlook.hear(0, *event)
        assert outlook.free[0] >= 0.0
        assert outlook.queue[0, 0] >= 0.0
        assert (np.diff(outlook.queue[0]) >= -1e-6).all()
        assert np.isfinite(outlook.queue[0]).all()
        assert outlook.busy[0] or not outlook.queue[0].any()


@property_test
@given(st.lists(sends, max_size=12), st.floats(0, 20), st.floats(0, 1e4), queued)
def test_a_report_forgets_what_was_reckoned_before(
    before: list[Sent], taken_s: float, wait_ms: float, work: Queued
) -> None:
    """It is as if only the sends that it cannot know of had been made after it, in their order of arrival."""
    seen, fresh = an_outlook(), an_outlook()
    for each in before:
        seen.send(0, each)
    seen.hear(0, taken_s, wait_ms, work)
    fresh.hear(0, taken_s, wait_ms, work)
    for each in sorted(each for each in before if each.arrives_s > taken_s):
        fresh.send(0, each)
    assert seen.free[0] == fresh.free[0]
    assert seen.base[0] == fresh.base[0]
    assert (seen.queue[0] == fresh.queue[0]).all()


def test_an_unknown_time_is_thought_as_of_most_others() -> None:
    outlook = an_outlook(5)
    outlook.told(0, MODEL, 0.0, 0.0)
    assert outlook.of(MODEL)[0][0] == UNKNOWN_MS
    for at, ms in ((0, 2.0), (1, 4.0), (2, 30.0)):
        outlook.told(at, MODEL, ms, ms / 2)
    outlook.told(3, MODEL, 0.0, 0.0)
    outlook.told(4, MODEL, inf, 0.0)
    service, row = outlook.of(MODEL)
    assert service[:5].tolist() == [2.0, 4.0, 30.0, 4.0, inf]
    assert row[:5].tolist() == [1.0, 2.0, 15.0, 4.0, 0.0]


def test_what_no_node_said_cannot_be_had() -> None:
    outlook = an_outlook(3)
    assert np.isinf(outlook.of(MODEL)[0]).all()
    assert np.isinf(outlook.penalty).all()


def test_columns_grow_with_their_content() -> None:
    outlook = an_outlook(2)
    outlook.told(1, MODEL, 7.0, 3.0)
    outlook.hear(1, NOW, 50.0, ((2, (20.0,)),))
    outlook.penalty[1], outlook.bias[1] = 0.0, 9.0
    for at in range(2, 40):
        assert outlook.slot(f"n{at}", 2.0, None) == at
    service, row = outlook.of(MODEL)
    assert (service[1], row[1], outlook.free[1], outlook.bias[1], outlook.count) == (7.0, 3.0, 30.0, 9.0, 40)
    assert outlook.queue[1, row_of(2) + 1] == 20.0
    assert np.isinf(service[2:]).all()
    assert np.isinf(outlook.penalty[2:]).all()
    assert outlook.half[39] == LOCAL_MS / 2
    outlook.send(39, sent())
    assert work_ms(outlook, 39) == 10.0


def spoil(outlook: Outlook, node: str, uplink: Wire) -> int:
    """A node of which everything is known that can be."""
    at = outlook.slot(node, 2.0, Link(WAN, uplink, Wire(1.0)))
    outlook.penalty[at] = 0.0
    outlook.told(at, MODEL, 3.0, 2.0)
    outlook.hear(at, NOW, 90.0, ((3, (30.0,)),))
    outlook.send(at, sent(NOW + 1.0))
    outlook.residuals[at].learn(500.0, 1.0, 1000.0, NOW)
    uplink.sent(10**6, 0.0, NOW)
    outlook.wire(at, NOW)
    outlook.learned(at, NOW)
    outlook.reported_in_flight[at] = 4
    return at


def test_a_slot_that_is_used_again_remembers_nothing_of_its_old_node() -> None:
    outlook, fresh, uplink = an_outlook(1), an_outlook(1), Wire(WAN.bytes_per_ms)
    fresh.of(MODEL)
    at = spoil(outlook, "old", uplink)
    outlook.forget("old")
    outlook.forget("old")
    assert outlook.penalty[at] == inf
    assert outlook.slot("new", 1.0, Link(LAN)) == at == fresh.slot("new", 1.0, Link(LAN))
    outlook.ended(at, 1)  # an answer of the old node, that came too late
    for name, column in vars(fresh).items():
        if isinstance(column, np.ndarray):
            assert (getattr(outlook, name)[at] == column[at]).all(), name
    for mine, theirs in zip(outlook.of(MODEL), fresh.of(MODEL), strict=True):
        assert mine[at] == theirs[at]
    assert (outlook.names[at], outlook.in_flight(at)) == ("new", 0)
    assert outlook.residuals[at].peak_ms(NOW) == outlook.residuals[at].sigma_ms(NOW) == 0.0
    outlook.hear(at, NOW, 0.0, ())
    assert work_ms(outlook, at) == 0.0
    assert outlook.slot("other", 1.0, None) == at + 1, "one slot each"


def test_a_forgotten_node_leaves_its_uplink() -> None:
    outlook, uplink = an_outlook(1), Wire(WAN.bytes_per_ms)
    at = spoil(outlook, "old", uplink)
    other = outlook.slot("beside", 2.0, Link(WAN, uplink, Wire(1.0)))
    outlook.forget("old")
    assert outlook.slot("new", 1.0, Link(LAN)) == at
    outlook.wire(other, NOW)
    assert (outlook.up_pace[at], outlook.clear[at]) == (0.0, 0.0)
    assert outlook.clear[other] > NOW * 1e3


def test_what_one_sends_delays_all_behind_the_same_uplink() -> None:
    outlook, uplink = Outlook(), Wire(WAN.bytes_per_ms)
    for at in range(3):
        outlook.slot(f"c{at}", 2.0, Link(WAN, uplink, Wire(1.0)))
    lan = outlook.slot("n1", 1.0, Link(LAN))
    for at in range(4):
        outlook.wire(at, NOW)
    assert outlook.up_ms(2, 62_500, NOW) == pytest.approx(WAN.rtt_ms / 2 + 10.0)
    uplink.sent(625_000, 0.0, NOW)
    outlook.wire(0, NOW)
    assert outlook.up_ms(2, 62_500, NOW) == pytest.approx(WAN.rtt_ms / 2 + 110.0)
    assert outlook.up_ms(2, 62_500, NOW + 0.06) == pytest.approx(WAN.rtt_ms / 2 + 50.0), "it drains by itself"
    assert outlook.up_ms(lan, 0, NOW) == pytest.approx(LAN.rtt_ms / 2)


def test_a_node_that_is_reached_another_way_leaves_its_old_wire() -> None:
    outlook, uplink = Outlook(), Wire(WAN.bytes_per_ms)
    at = outlook.slot("n1", 1.0, Link(WAN, uplink, Wire(1.0)))
    direct = Link(LAN)
    assert outlook.slot("n1", 1.0, direct) == at
    uplink.sent(10**6, 0.0, NOW)
    outlook.wire(at, NOW)
    assert outlook.up_ms(at, 0, NOW) == pytest.approx(LAN.rtt_ms / 2)
    assert outlook.slot("n1", 0.0, None) == at
    outlook.wire(at, NOW)
    assert outlook.up_ms(at, 10**6, NOW) == pytest.approx(LOCAL_MS / 2)
