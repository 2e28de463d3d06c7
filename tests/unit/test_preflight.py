"""The memory preflight as arithmetic: what is free, what is missing, who would have to go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.preflight import (
    MIB,
    MIN_RESERVE,
    WORKER_BYTES,
    Evictable,
    Footprint,
    Room,
    less,
    missing,
    predict,
    refusal,
    room,
    victims,
)
from mesh.messages import DeviceGauges, Gauges

GIB = 1 << 30
NONE = Footprint(0, 0)


def test_the_reserve_is_the_larger_of_a_tenth_and_half_a_gibibyte() -> None:
    assert room(Gauges(memory_used_bytes=1 * GIB, memory_total_bytes=4 * GIB), 0, None).box == 3 * GIB - MIN_RESERVE
    large = room(Gauges(memory_used_bytes=1 * GIB, memory_total_bytes=100 * GIB), 0, None)
    assert large.box == 89 * GIB
    assert room(Gauges(memory_used_bytes=1 * GIB, memory_total_bytes=4 * GIB), 0, 0).box == 3 * GIB
    assert room(Gauges(memory_used_bytes=4 * GIB, memory_total_bytes=4 * GIB), 0, None).box == 0


def test_what_is_unknown_refuses_nothing() -> None:
    unknown = room(Gauges(), 0, None)
    assert unknown == Room(None, None, unified=False)
    assert missing(Footprint(1 << 60, 1 << 60), unknown) == NONE


def test_a_card_of_its_own_is_a_pool_of_its_own() -> None:
    card = DeviceGauges("gpu", memory_used_bytes=2 * GIB, memory_total_bytes=8 * GIB)
    gauges = Gauges(memory_used_bytes=0, memory_total_bytes=4 * GIB, devices=(card,))
    free = room(gauges, 0, 0)
    assert free == Room(4 * GIB, 6 * GIB, unified=False)
    assert missing(Footprint(1 * GIB, 7 * GIB), free) == Footprint(0, 1 * GIB)
    assert room(gauges, 1, 0).device is None  # there is no second one


def test_unified_memory_is_counted_once() -> None:
    shared = DeviceGauges("orin", memory_used_bytes=1 * GIB, memory_total_bytes=8 * GIB, unified_memory=True)
    free = room(Gauges(memory_used_bytes=1 * GIB, memory_total_bytes=8 * GIB, devices=(shared,)), 0, 0)
    assert free == Room(7 * GIB, None, unified=True)
    assert missing(Footprint(3 * GIB, 3 * GIB), free) == NONE
    assert missing(Footprint(4 * GIB, 4 * GIB), free) == Footprint(1 * GIB, 0)
    assert less(free, [Footprint(1 * GIB, 2 * GIB)]).box == 4 * GIB


def test_a_model_never_loaded_is_guessed_from_its_file() -> None:
    assert predict(100 * MIB, on_gpu=False, own_worker=False) == Footprint(250 * MIB)
    assert predict(100 * MIB, on_gpu=True, own_worker=True) == Footprint(WORKER_BYTES + 250 * MIB, 250 * MIB)


def test_a_refusal_has_the_numbers() -> None:
    assert refusal(Footprint(3 * GIB), Room(1 * GIB, None)) == (
        "it needs about 3072 MiB of memory, 1024 MiB are free beyond the reserve"
    )
    assert "3072 MiB of the GPU's memory, 0 MiB are free" in refusal(Footprint(1, 3 * GIB), Room(1 * GIB, 0))


@pytest.mark.parametrize(
    ("short", "chosen"),
    [(1, ["oldest"]), (10, ["oldest"]), (11, ["oldest", "older"]), (60, ["oldest", "older", "newest"]), (61, None)],
)
def test_the_least_recently_used_go_first_and_no_more_than_needed(short: int, chosen: list[str] | None) -> None:
    idle = [
        Evictable("newest", Footprint(30), 3.0),
        Evictable("oldest", Footprint(10), 1.0),
        Evictable("older", Footprint(20), 2.0),
    ]
    assert victims(Footprint(short), False, idle) == chosen


def test_what_holds_nothing_of_what_is_short_stays() -> None:
    idle = [Evictable("on the cpu", Footprint(50, 0), 1.0), Evictable("on the gpu", Footprint(5, 50), 2.0)]
    assert victims(Footprint(0, 20), False, idle) == ["on the gpu"]
    assert victims(Footprint(55, 0), True, idle) == ["on the cpu", "on the gpu"]
    assert victims(NONE, False, idle) == []


footprints = st.builds(Footprint, st.integers(0, 100), st.integers(0, 100))


@given(footprints, st.booleans(), st.lists(st.tuples(footprints, st.floats(0, 9))))
def test_victims_free_what_is_short_or_there_are_none(
    short: Footprint, unified: bool, idle: list[tuple[Footprint, float]]
) -> None:
    if unified:
        short = Footprint(short.box)
    chosen = victims(short, unified, [Evictable(at, f, used) for at, (f, used) in enumerate(idle)])
    freed = [idle[at][0] for at in (range(len(idle)) if chosen is None else chosen)]
    enough = missing(short, less(Room(0, 0, unified), [Footprint(-f.box, -f.device) for f in freed])) == NONE
    assert enough == (chosen is not None)
