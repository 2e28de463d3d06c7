"""Inside a worker: a run is matched by slot and generation, lanes overlap, replies stay whole."""

from __future__ import annotations

import os
import random
import threading

import pytest

from hardware import frames
from hardware.arena import Slot
from hardware.frames import Closed, Failed, Order, Reader, Reply, Run
from hardware.worker_runs import Lane, Outbox, Runs


def test_a_run_in_progress_is_interrupted() -> None:
    runs = Runs(2)
    interrupt = runs.begin(1, 1)
    assert interrupt is not None
    runs.call_off(Slot(1, 1))
    assert interrupt.is_set


def test_what_was_called_off_before_never_begins() -> None:
    runs = Runs(2)
    runs.call_off(Slot(0, 1))
    assert runs.begin(0, 1) is None
    following = runs.begin(0, 2)
    assert following is not None
    assert not following.is_set


@pytest.mark.parametrize("late", [Slot(0, 1), Slot(0, 2)])
def test_a_run_that_ended_leaves_the_next_alone(late: Slot) -> None:
    runs = Runs(1)
    for generation in (1, 2):
        assert runs.begin(0, generation) is not None
        runs.end(0)
    runs.call_off(late)
    following = runs.begin(0, 3)
    assert following is not None
    assert not following.is_set
    runs.call_off(late)
    assert not following.is_set


def test_neighbours_are_never_hit_however_the_threads_interleave() -> None:
    """One thread runs, another calls off every third generation at whatever moment: only those may be hit."""
    runs = Runs(1)
    hit: list[int] = []
    current = 0
    ended = threading.Event()

    def call_off() -> None:
        generation = 0
        while not ended.is_set():
            generation = max(generation, current + random.choice((-1, 0, 1, 2)))
            if generation % 3 == 0:
                runs.call_off(Slot(0, generation))

    caller = threading.Thread(target=call_off)
    caller.start()
    for generation in range(1, 20_001):
        current = generation
        interrupt = runs.begin(0, generation)
        if interrupt is None:
            hit.append(generation)
            continue
        interrupt.on_set(lambda generation=generation: hit.append(generation))  # type: ignore[misc]
        interrupt.on_set(None)
        runs.end(0)
    ended.set()
    caller.join()
    assert {generation % 3 for generation in hit} <= {0}


def test_a_lane_overlaps_as_many_runs_as_it_has_threads() -> None:
    together = threading.Barrier(3)

    def work(run: Run) -> None:
        together.wait(60)

    lane = Lane("m", 3, work)
    for n in range(6):
        lane.put(Run(n, 1, "m", [], []))
    lane.close()
    assert not together.broken
    assert together.n_waiting == 0


def test_a_lane_takes_its_runs_in_order_and_closes_behind_the_last() -> None:
    done: list[int] = []
    lane = Lane("m", 1, lambda run: done.append(run.slot))
    for n in range(100):
        lane.put(Run(n, 1, "m", [], []))
    lane.close()
    assert done == list(range(100))


def test_replies_of_many_threads_stay_whole() -> None:
    read_fd, write_fd = os.pipe()
    outbox = Outbox(write_fd)

    def reply(slot: int) -> None:
        for generation in range(200):
            outbox.send(Failed(slot, generation, "run_failed", "x" * random.randrange(3_000)))

    threads = [threading.Thread(target=reply, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    reader, replies = Reader(), list[Reply]()
    while len(replies) < 800:
        replies += [frames.decode_reply(frame) for frame in reader.feed(os.read(read_fd, 65536))]
    for thread in threads:
        thread.join()
    for slot in range(4):
        assert [r.generation for r in replies if isinstance(r, Failed) and r.slot == slot] == list(range(200))
    os.close(read_fd)
    os.close(write_fd)


def test_held_replies_go_with_the_next_flush() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    outbox = Outbox(write_fd)
    outbox.hold(Closed(1))
    with pytest.raises(BlockingIOError):
        os.read(read_fd, 100)
    outbox.hold(Closed(2))
    outbox.send(Closed(3))
    for _ in range(2):
        outbox.flush()
    replies = [frames.decode_reply(frame) for frame in Reader().feed(os.read(read_fd, 100))]
    assert replies == [Closed(3), Closed(1), Closed(2)]
    os.close(read_fd)
    os.close(write_fd)


def test_orders_of_the_control_pipe_may_come_in_parts() -> None:
    orders = [Order(n % 2 == 0, Slot(n, 2**40 + n)) for n in range(5)]
    data = b"".join(map(frames.encode_order, orders))
    for cut in range(len(data)):
        first, rest = frames.decode_orders(data[:cut])
        second, left = frames.decode_orders(rest + data[cut:])
        assert first + second == orders
        assert left == b""


@pytest.mark.parametrize("ends", ["told", "hang_up"])
def test_a_stream_waits_for_its_turn_and_is_told_when_none_comes(ends: str) -> None:
    runs, slot = Runs(2), Slot(1, 7)
    interrupt = runs.begin(*slot)
    assert interrupt is not None
    turn = runs.streams(slot, interrupt)
    runs.told(Order(True, Slot(1, 6)))  # of the run before
    runs.told(Order(True, slot))
    assert turn.comes()
    came: list[bool] = []
    waits = threading.Thread(target=lambda: came.append(turn.comes()))
    waits.start()
    if ends == "told":
        runs.told(Order(False, slot))
    else:
        runs.hang_up()
    waits.join(60)
    assert came == [False]
    runs.streamed(slot)
    runs.told(Order(True, slot))  # too late for anything


def test_a_stream_that_begins_as_the_parent_leaves_does_not_wait_for_it() -> None:
    runs, slot = Runs(1), Slot(0, 1)
    interrupt = runs.begin(*slot)
    assert interrupt is not None
    runs.hang_up()
    assert not runs.streams(slot, interrupt).comes()
