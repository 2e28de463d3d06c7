"""When a node would answer: the parts of a prediction, who goes first, and what must never come out.

Not here: how the columns are kept (``test_outlook``), which node is taken (``test_balancer``).
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.estimator import STALE_MS, Ask, Estimate, estimate
from mesh.link import LAN, WAN, Link, Prior
from mesh.messages import BINS, CLASSES, EDGES_MS, Queued
from mesh.outlook import LOCAL_MS, SUSPECT_MS, Outlook, Sent

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 1000.0
MODEL = "resnet"


def an_ask(left_ms: float = 1000.0, nbytes: int = 0, reply_bytes: int = 0, priority: int = 0) -> Ask:
    return Ask(MODEL, left_ms, 1000.0, nbytes, reply_bytes, priority)


def an_outlook(
    link: Link | None = None, wait_ms: float = 0.0, queued: Queued = (), service_ms: float = 5.0, age_s: float = 0.0
) -> Outlook:
    """One node, in slot 0: this very process unless it has a link."""
    outlook = Outlook(1)
    outlook.slot("n0", 0.0, link)
    outlook.wire(0, NOW)
    outlook.hear(0, NOW - age_s, wait_ms, queued)
    outlook.told(0, MODEL, service_ms, service_ms)
    outlook.penalty[0] = 0.0
    return outlook


def predicted(outlook: Outlook, ask: Ask | None = None, now: float = NOW) -> Estimate:
    return estimate(outlook, ask or an_ask(), now).at(0)


def waits(queued: Queued, left_ms: float, priority: int = 0) -> float:
    """Of a request at an idle node with so much queued, without the time under way."""
    wait_ms = sum(sum(bins) for _, bins in queued)
    return predicted(an_outlook(None, wait_ms, queued), an_ask(left_ms, priority=priority)).wait_ms + LOCAL_MS / 2


def test_the_parts_add_up() -> None:
    outlook = an_outlook(Link(WAN), 50.0)
    outlook.residuals[0].learn(147.0, 47.0, 1000.0, NOW)
    outlook.learned(0, NOW)
    found = predicted(outlook, an_ask(nbytes=62_500, reply_bytes=6_250))
    assert found == pytest.approx((10.0 + 10.0 + 1.0, 50.0 - 5.0 - 10.0, 5.0, 5.0, 5.0))
    assert found.total_ms == pytest.approx(21.0 + 35.0 + 5.0 + 5.0)


def test_here_nothing_is_carried() -> None:
    assert predicted(an_outlook(), an_ask(nbytes=10**9, reply_bytes=10**9)) == pytest.approx((LOCAL_MS, 0.0, 5.0, 0, 0))


def test_work_drains_with_the_age_of_the_report_and_on_the_way_there() -> None:
    outlook = an_outlook(Link(Prior(20.0, 1e3)), 100.0, age_s=0.04)
    assert [predicted(outlook, now=NOW + age).wait_ms for age in (0.0, 0.01, 0.05, 1.0)] == pytest.approx(
        [50.0, 40.0, 0.0, 0.0]
    )
    assert predicted(outlook, an_ask(nbytes=30_000)).wait_ms == pytest.approx(20.0), "30 ms of bytes"


def test_higher_classes_go_first() -> None:
    queued = ((1, (10.0,)), (3, (20.0,)), (CLASSES, (40.0,)))
    assert [waits(queued, 1e5, priority) for priority in (1, 2, 3, 4, CLASSES, 0)] == pytest.approx(
        [10.0, 10.0, 30.0, 30.0, 70.0, 70.0]
    )


def test_earlier_deadlines_of_its_own_class_go_first() -> None:
    """At an edge all bins before it count, and between two edges a straight share of the bin."""
    queued = ((2, tuple(10.0 for _ in range(BINS))), (5, (1000.0,)))
    for at, edge_ms in enumerate(EDGES_MS):
        assert waits(queued, edge_ms, 2) == pytest.approx(10.0 * (at + 1))
    assert waits(queued, 0.0, 2) == waits(queued, -5.0, 2) == pytest.approx(0.05, abs=0.06)
    assert waits(queued, 12.5, 2) == pytest.approx(5.0)
    assert waits(queued, 75.0, 2) == pytest.approx(25.0)
    assert waits(queued, 2 * EDGES_MS[-1], 2) == waits(queued, 1e9, 2) == pytest.approx(90.0)


bins = st.lists(st.floats(0, 1e4), min_size=1, max_size=BINS).map(tuple)
queued = st.dictionaries(st.integers(1, CLASSES), bins, max_size=4).map(lambda found: tuple(sorted(found.items())))


@property_test
@given(queued, st.integers(1, CLASSES), st.floats(-100, 1e4))
def test_the_share_of_a_bin_lies_between_the_bins(work: Queued, priority: int, left_ms: float) -> None:
    higher = sum(sum(found) for level, found in work if level < priority)
    own = next((found for level, found in work if level == priority), ())
    edges = (*EDGES_MS, inf)
    sooner = sum(ms for ms, edge in zip(own, edges, strict=False) if edge <= left_ms)
    touched = sum(ms for ms, begin in zip(own, (-inf, *edges), strict=False) if begin < left_ms)
    rough = 1e-6 * (1.0 + higher + sum(own))
    assert higher + sooner - rough <= waits(work, left_ms, priority) <= max(higher + touched, LOCAL_MS / 2) + rough


links = st.one_of(st.none(), st.builds(Link, st.builds(Prior, st.floats(0.01, 1e3), st.floats(1.0, 1e6))))
asks = st.builds(
    an_ask, st.floats(-100, 1e5), st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, CLASSES + 4)
)


@property_test
@given(
    ask=asks, link=links, work=queued, running=st.floats(0, 1e4), service=st.floats(0.01, 1e4),
    age=st.floats(0, 2), error=st.floats(-1e4, 1e4), more=st.floats(0, 1e4), more_bytes=st.integers(0, 10**8),
)  # fmt: skip
def test_more_of_anything_never_predicts_an_earlier_answer(
    ask: Ask, link: Link | None, work: Queued, running: float, service: float, age: float, error: float, more: float,
    more_bytes: int,
) -> None:  # fmt: skip
    wait = running + sum(sum(found) for _, found in work)
    outlook = an_outlook(link, wait, work, service, age)
    outlook.bias[0] = error
    base = predicted(outlook, ask)
    rough = 1e-9 * (1.0 + abs(base.total_ms) + wait)

    def total(of: Outlook, asked: Ask = ask) -> float:
        of.bias[0] = error
        return predicted(of, asked).total_ms + rough

    assert base.total_ms + rough >= base.network_ms + base.service_ms, "faster than the way and the run"
    assert base.wait_ms >= 0.0
    assert total(an_outlook(link, wait + more, work, service, age)) >= base.total_ms
    assert total(an_outlook(link, wait, work, service + more, age)) >= base.total_ms
    later = replace(ask, left_ms=ask.left_ms - more / 100.0)
    assert predicted(outlook, later, NOW + more / 1e5).total_ms + more / 100.0 + 1e-6 >= base.total_ms, "it waits"
    for level in (1, ask.priority or CLASSES, CLASSES):
        found = dict(work)
        found[min(level, CLASSES)] = tuple(ms + more for ms in (*found.get(min(level, CLASSES), ()), 0.0))[:BINS]
        heavier = tuple(sorted(found.items()))
        wait_more = running + sum(sum(found) for _, found in heavier)
        assert total(an_outlook(link, wait_more, heavier, service, age)) + 1e-6 >= base.total_ms
    assert total(outlook, replace(ask, reply_bytes=ask.reply_bytes + more_bytes)) >= base.total_ms
    # On its way a request loses nothing: what drains meanwhile it would have waited for.
    assert total(outlook, replace(ask, nbytes=ask.nbytes + more_bytes)) >= base.total_ms
    outlook.half += more / 2
    assert total(outlook) >= base.total_ms
    outlook.clear[:] = np.maximum(outlook.clear, NOW * 1e3 + more)
    assert total(outlook) >= base.total_ms


@property_test
@given(asks, links, queued, st.floats(0, 1e4), st.floats(0, 2), st.floats(0, 1e3))
def test_a_request_of_our_own_never_makes_the_next_one_sooner(
    ask: Ask, link: Link | None, work: Queued, running: float, age: float, work_ms: float
) -> None:
    """Nor later than by its work, and by what drains until it is there: that empties the front of a bin, of which the
    next one counts its share before and after."""
    outlook = an_outlook(link, running + sum(sum(found) for _, found in work), work, age_s=age)
    before = predicted(outlook, ask)
    arrives_s = NOW + outlook.up_ms(0, ask.nbytes, NOW) / 1e3
    outlook.send(0, Sent(arrives_s, 1, 0.0, work_ms))
    after = predicted(outlook, ask)
    rough = 1e-6 * (1.0 + before.total_ms)
    drained = min((arrives_s - NOW + age) * 1e3, max((ms for _, bins in work for ms in bins), default=0.0))
    assert before.total_ms - rough <= after.total_ms <= before.total_ms + work_ms + drained + rough


@property_test
@given(
    st.lists(
        st.tuples(
            links, st.sampled_from([0.0, SUSPECT_MS, inf]), st.sampled_from([0.0, 3.0, 1e9, inf]), st.floats(0, 1e9),
            st.sampled_from([0.0, 2.0, 60.0, NOW]), st.integers(0, 3), st.floats(0, 1e9),
        ),
        max_size=6,
    ),
    asks,
)  # fmt: skip
def test_nothing_is_ever_not_a_number(
    drawn: list[tuple[Link | None, float, float, float, float, int, float]], ask: Ask
) -> None:
    outlook = Outlook(1)
    for at, (link, penalty, service, wait, age, own, error) in enumerate(drawn):
        outlook.slot(f"n{at}", 0.0, link)
        outlook.penalty[at] = penalty
        outlook.told(at, MODEL, service, 0.0)
        outlook.hear(at, NOW - age, wait, ())
        for _ in range(own):
            outlook.send(at, Sent(NOW + 1.0, 0, NOW, wait))
        outlook.residuals[at].learn(error, 0.0, 1e8, NOW - age)
        outlook.wire(at, NOW)
        outlook.learned(at, NOW)
    found = estimate(outlook, ask, NOW)
    for column in found:
        assert not np.isnan(column).any()
    for at, (_, penalty, service, *_) in enumerate(drawn):
        assert np.isfinite(found.total[at]) == (penalty < inf and service < inf)
    assert np.isinf(found.total[len(drawn) :]).all()


def test_of_an_old_report_answers_count_and_own_requests() -> None:
    outlook = an_outlook(Link(LAN), 1e6, age_s=STALE_MS / 1e3 + 0.001)
    dead_reckoned = predicted(outlook).total_ms
    assert dead_reckoned > 1e5, "nothing was ever answered"
    outlook.residuals[0].learn(40.0, 0.0, 1000.0, NOW)
    assert predicted(outlook).total_ms == pytest.approx(40.0)
    outlook.send(0, Sent(NOW, 0, NOW + 1.0, 5.0))
    outlook.send(0, Sent(NOW, 0, NOW + 1.0, 5.0))
    assert predicted(outlook).total_ms == pytest.approx(120.0)
    outlook.hear(0, NOW, 7.0, ())
    assert predicted(outlook).total_ms == pytest.approx(1.0 + 5.0 + 7.0 - 0.5, abs=0.01)


def test_of_an_old_report_the_way_and_the_run_count_at_least() -> None:
    outlook = an_outlook(Link(WAN), age_s=60.0)
    outlook.residuals[0].learn(2.0, 0.0, 1000.0, NOW)
    assert predicted(outlook).total_ms == pytest.approx(15.0)


def test_slots_do_not_touch_each_other() -> None:
    """The last slot's last bin too: what one would read beyond is the next one's."""
    luck, outlook, alone = Random(5), Outlook(3), []
    for at in range(5):
        work: Queued = ((luck.choice((1, 8, CLASSES)), tuple(luck.random() * 50.0 for _ in range(BINS))),)
        wait, age = luck.random() * 900.0, luck.random()
        outlook.slot(f"n{at}", 0.0, Link(LAN))
        outlook.wire(at, NOW)
        outlook.hear(at, NOW - age, wait, work)
        outlook.told(at, MODEL, 5.0, 5.0)
        outlook.penalty[at] = 0.0
        alone.append(an_outlook(Link(LAN), wait, work, age_s=age))
    for left_ms, priority in ((20.0, 0), (300.0, 8), (1e6, 0), (1e6, 1)):
        ask = an_ask(left_ms, priority=priority)
        together = estimate(outlook, ask, NOW)
        assert [together.at(at) for at in range(5)] == [predicted(each, ask) for each in alone]
