"""The waiting requests of a device: what may run together, in what order, and how much goes before a new one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.batching import Batching
from edge.lane import CLIMB_S, Lane, Queue, admit
from edge.latency import Slowdown
from edge.served import Item, Served
from hardware.backend import RawTensor
from mesh.deadline import Deadline
from mesh.messages import CLASSES, EDGES_MS
from tests.device import rows

ORDER = itertools.count()


def served(name: str = "m", max_rows: int = 8, priority: int = 0, row_ms: float = 1.0) -> Served:
    found = Served(name, name, priority=priority, batching=Batching(max_rows))
    found.latency.measured(((2,),) if max_rows > 1 else ((1, 2),), [(n, 4.0 + row_ms * n) for n in (1, 2, 4, 8)])
    return found


async def item(
    of: Served, inputs: Sequence[RawTensor] | None = None, *, at: float = 100.0, level: int = 0,
    outputs: Sequence[str] = (), now: float = 0.0,
) -> Item:  # fmt: skip
    return admit(of, rows(1) if inputs is None else inputs, outputs, Deadline(at), level, now, next(ORDER))


async def queued(queue: Queue, of: Served, **facts: float | int) -> Item:
    added = await item(of, at=facts.get("at", 100.0), level=int(facts.get("level", 0)), now=facts.get("now", 0.0))
    queue.add(added)
    return added


async def test_alike_requests_share_a_lane_and_others_do_not() -> None:
    queue, model, other = Queue(), served(), served("other")
    x, y = rows(1), rows(1, name="Z")
    alike = [await item(model, inputs) for inputs in (x, rows(1, 2), x)]
    different = [
        await item(other, x),
        await item(model, rows(1, width=3)),
        await item(model, rows(1, name="Z")),
        await item(model, [RawTensor("X", "INT8", (1, 2), b"ab")]),
        await item(model, x, outputs=["Y"]),
        await item(model, x + y),
        await item(model, y + x),
    ]
    lanes = [queue.add(item) for item in alike + different]
    assert len({id(lane) for lane in lanes[:3]}) == 1
    assert len({id(lane) for lane in lanes[2:]}) == len(different) + 1
    assert (lanes[0].rows, lanes[0].limit, queue.waiting) == (4, 8, len(lanes))


async def test_who_can_only_run_alone_waits_with_others_of_that_kind_in_runs_of_one() -> None:
    queue, model, single = Queue(), served(), served("single", max_rows=1)
    scalar = RawTensor("K", "UINT8", (), b"k")
    lanes = [queue.add(await item(model, [*rows(1), scalar])) for _ in range(2)]
    assert (lanes[0], lanes[0].limit, lanes[0].rows) == (lanes[1], 1, 2)
    lanes = [queue.add(await item(single, inputs)) for inputs in (rows(1), rows(2), rows(1, 2))]
    assert lanes[0] is lanes[1] is not lanes[2]
    assert {lane.limit for lane in lanes} == {1}
    failed = await item(model)
    failed.alone = True
    assert queue.add(failed) is not queue.add(await item(model))


async def test_a_class_is_what_the_request_says_or_else_its_model() -> None:
    plain, important = served(), served(priority=3)
    found = [(await item(of, level=level)).level for of in (plain, important) for level in (0, 1, 2, 99)]
    assert found == [CLASSES, 1, 2, CLASSES, 3, 1, 2, CLASSES]


async def test_the_earliest_deadline_of_the_first_class_is_at_the_top() -> None:
    queue, model = Queue(), served()
    items = [await queued(queue, model, at=at, level=level) for at, level in ((9, 2), (5, 2), (7, 1), (7, 1), (8, 1))]
    lane = items[0].lane
    lane.climb(0.0)
    assert lane.level == 1
    assert lane.top() == [items[2], items[3], items[4]]
    assert lane.below() == [items[1], items[0]]
    assert set(lane) == set(items)


async def test_lanes_vanish_with_their_last_request() -> None:
    queue, model = Queue(), served()
    items = [await queued(queue, model) for _ in range(2)]
    queue.take(items[0])
    assert (len(queue.lanes), queue.waiting, items[0].lane) == (1, 1, None)
    queue.take(items[1])
    assert (queue.lanes, queue.waiting) == ({}, 0)
    with pytest.raises(ValueError, match="does not wait"):
        queue.take(items[0])


async def test_a_class_without_a_run_climbs_over_those_above_it_and_falls_back_after_one() -> None:
    queue, model = Queue(), served()
    low = [await queued(queue, model, level=3) for _ in range(2)]
    lane = low[0].lane
    now, seen = 0.0, []
    for _ in range(12):
        urgent = await queued(queue, model, level=1, now=now * CLIMB_S)
        lane.climb(now * CLIMB_S)
        seen.append((now, lane.level, lane.top()[0].level))
        lane.runs([urgent], now * CLIMB_S)
        queue.take(urgent)
        now += 0.5
    assert seen[5:8] == [(2.5, 1, 1), (3.0, 0, 3), (3.5, 0, 3)]
    lane.runs(low[:1], now * CLIMB_S)
    queue.take(low[0])
    lane.climb(now * CLIMB_S)
    assert (lane.level, lane.top()) == (3, [low[1]])
    for later, level in ((0.9, 3), (1.0, 2), (2.9, 1), (3.1, 0), (50.0, 0)):
        lane.climb((now + later) * CLIMB_S)
        assert lane.level == level


async def test_a_class_climbs_as_a_whole() -> None:
    queue, model = Queue(), served()
    items = [await queued(queue, model, now=second, at=100.0 + second) for second in (0.0, 0.6, 1.7, 3.0)]
    lane = items[0].lane
    lane.climb(3.0)
    assert lane.top() == items
    assert lane.below() == []


async def test_what_goes_ahead_of_a_new_request() -> None:
    model = served()
    lane = Lane("key", model, ((2,),), 8)
    for at, level in ((5.0, 1), (50.0, 1), (10.0, 2), (20.0, 2), (5.0, 3)):
        lane.add(await item(model, rows(1, 2), at=at, level=level))
    assert lane.rows_ahead(1, 5.0, 0.0) == 2
    assert lane.rows_ahead(2, 15.0, 0.0) == 6
    assert lane.rows_ahead(2, 20.0, 0.0) == 8
    assert lane.rows_ahead(3, 1.0, 0.0) == 8
    assert lane.rows_ahead(3, 99.0, 6.0) == 6  # those of 5 s will be dropped by then


def total(queue: Queue, slowdown: Slowdown, now: float = 0.0) -> float:
    return sum(sum(bins) for _, bins in queue.work(now, slowdown, 1.0))


async def test_work_is_counted_in_the_runs_that_pay_best() -> None:
    queue, slowdown = Queue(), Slowdown()
    assert queue.work(0.0, slowdown, 1.0) == ()
    model, single = served(), served("single", max_rows=1)
    for _ in range(16):
        await queued(queue, model)
    assert total(queue, slowdown) == pytest.approx(2 * 12.0)
    await queued(queue, single)
    assert total(queue, slowdown) == pytest.approx(24.0 + 5.0)
    slowdown.factor = 2.0
    assert total(queue, slowdown) == pytest.approx(58.0)
    late = await item(model, at=99.0)
    slowdown.factor = 1.0
    assert queue.ahead_ms(late, 0.0, slowdown) == 0.0
    assert queue.ahead_ms(await item(model, at=101.0), 0.0, slowdown) == pytest.approx(29.0)


async def test_work_is_told_by_class_and_by_the_time_left() -> None:
    queue, one = Queue(), served("single", max_rows=1)  # 5 ms each
    for at, level in ((10.001, 2), (10.025, 2), (10.026, 2), (13.2, 2), (13.3, 2), (10.05, 0), (10.0, 1), (9.0, 1)):
        await queued(queue, one, at=at, level=level)
    found = queue.work(10.0, Slowdown(), 0.5)
    assert [level for level, _ in found] == [2, CLASSES]  # nothing is left of class 1
    assert [bins for _, bins in found] == [pytest.approx((5.0, 2.5, 0, 0, 0, 0, 0, 2.5, 2.5)), (0.0, 2.5)]


async def test_what_nothing_is_known_of_is_no_work() -> None:
    queue = Queue()
    await queued(queue, Served("new", "new"))
    assert queue.work(0.0, Slowdown(), 1.0) == ()


async def test_of_one_deadline_the_first_goes_first_even_when_it_comes_back() -> None:
    queue, model = Queue(), served()
    first, second = [await queued(queue, model, at=5.0) for _ in range(2)]
    queue.take(first)
    queue.add(first)
    assert second.lane.top() == [first, second]


@given(
    waiting=st.lists(st.tuples(st.floats(-1.0, 8.0), st.integers(0, 17), st.integers(1, 4), st.booleans())),
    now=st.floats(0.0, 2.0),
)
def test_no_expired_request_and_every_other_is_counted_in_its_bin(
    waiting: list[tuple[float, int, int, bool]], now: float
) -> None:
    async def work() -> None:
        queue, batched, single = Queue(), served(), served("single", max_rows=1)
        expected: dict[tuple[int, int], float] = {}
        for at, level, count, alone in waiting:
            new = await item(single if alone else batched, rows(*range(count)), at=at, level=level)
            queue.add(new)
            if at > now:
                edge = next((i for i, ms in enumerate(EDGES_MS) if at <= now + ms / 1e3), len(EDGES_MS))
                ms = (new.lane.unit_ms(Slowdown())[0]) * new.rows
                expected[new.level, edge] = expected.get((new.level, edge), 0.0) + ms
        found = queue.work(now, Slowdown(), 1.0)
        told = {(level, i): ms for level, bins in found for i, ms in enumerate(bins) if ms}
        assert told == pytest.approx(expected)
        assert [level for level, _ in found] == sorted({level for level, _ in expected})
        assert all(bins[-1] > 0.0 for _, bins in found)

    asyncio.run(work())


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 5), st.integers(1, 4), st.integers(0, 2)),
        max_size=60,
    )
)
def test_a_queue_always_adds_up(steps: list[tuple[bool, int, int, int, int]]) -> None:
    async def work() -> None:
        queue, waiting = Queue(), list[Item]()
        models = [served(), served("b"), served("single", max_rows=1)]
        for add, at, level, count, which in steps:
            if add or not waiting:
                new = await item(models[which], rows(*range(count)), at=float(at), level=level)
                queue.add(new)
                waiting.append(new)
            else:
                queue.take(waiting.pop(at % len(waiting)))
        assert queue.waiting == len(waiting) == sum(len(list(lane)) for lane in queue.lanes.values())
        for lane in queue.lanes.values():
            assert lane.rows == sum(item.rows for item in lane) > 0
            lane.climb(0.0)
            ordered = [*lane.top(), *lane.below()]
            assert ordered == sorted(ordered, key=lambda item: (item.level, item.deadline.at, item.order))

    asyncio.run(work())
