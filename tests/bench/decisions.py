"""``python -m tests.bench.decisions``: what one decision costs, by rule, number of candidates and share of busy ones.

Each decision is timed alone, the rules in turn, so that a slow phase of the machine meets all. ``loop_us`` is a bare
Python loop that adds up the same parts of the same candidates (network, wait, service, bias) from lists of floats and
keeps the least, without deadlines, classes or tiers; ``ratio`` is to it. ``blocks`` are those that the decision still
holds when it is made, ``peak_bytes`` the most memory that was taken on the way. Not here: what keeps the outlook up to
date between decisions (see ``hear_us``), anything that is sent.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median

from mesh.balancer import COST
from mesh.estimator import Ask, estimate
from mesh.link import LAN, WAN, Link, Wire
from mesh.messages import Queued
from mesh.outlook import Outlook, Sent
from mesh.rules import RULES, Rule, Seen
from tests.bench.report import Row, machine, show
from tests.bench.stats import in_round, percentile

MODEL = "resnet"
COUNTS = (4, 10, 100, 1_000)
BUSY = (0.2, 1.0)
NOW = 1_000.0
SITE = 8
"""Peers on the LAN; the nodes behind them are at other sites and in the cloud, over one uplink."""
ASKS = [
    Ask(MODEL, left_ms, 500.0, nbytes, priority=priority)
    for left_ms in (40.0, 150.0, 400.0, 495.0)
    for nbytes in (3_000, 60_000, 600_000)
    for priority in (0, 1, 5)
]
Decide = Callable[[Ask], object]


def an_outlook(count: int, busy: float, luck: random.Random) -> Outlook:
    """Nodes that told of themselves in the last quarter of a second, ``busy`` of them with queues in three classes."""
    outlook, up, down = Outlook(), Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
    for number in range(count):
        far = number > SITE
        link = Link(WAN, up, down) if far else Link(LAN) if number else None
        slot = outlook.slot(
            f"node-{number}", COST["cloud" if number % 3 == 2 and far else "peer" if link else "local"], link
        )
        if link is not None:
            link.pinged(luck.uniform(15.0, 60.0) if far else luck.uniform(0.5, 3.0))
        outlook.wire(slot, NOW)
        outlook.penalty[slot] = 0.0
        outlook.told(slot, MODEL, luck.uniform(4.0, 30.0), luck.uniform(2.0, 8.0))
        outlook.reported_in_flight[slot] = luck.randrange(1, 12) if number < busy * count else 0
        queued = a_queue(luck) if number < busy * count else ()
        wait_ms = sum([sum(bins) for _, bins in queued]) + (luck.uniform(0.0, 20.0) if queued else 0.0)
        outlook.hear(slot, NOW - luck.uniform(0.0, 0.25) * (link is not None), wait_ms, queued)
        outlook.residuals[slot].learn(luck.uniform(10.0, 60.0), 25.0, 500.0, NOW - 0.1)
        outlook.learned(slot, NOW)
        for _ in range(luck.randrange(3)):
            outlook.send(slot, Sent(NOW - 0.01, 0, NOW + luck.uniform(0.05, 0.5), 4.0))
    return outlook


def a_queue(luck: random.Random) -> Queued:
    return tuple((level, tuple(luck.uniform(0.0, 15.0) for _ in range(luck.randrange(1, 10)))) for level in (1, 4, 16))


def deciding(name: str, outlook: Outlook, luck: random.Random) -> Decide:
    """The rule after it has seen 40 answers of each node it likes to ask."""
    rule: Rule = RULES[name]()
    for ask in islice(cycle(ASKS), 40 * min(outlook.count, 20)):
        slot = rule.choose(ask, outlook, NOW, luck, ()).slot
        if slot is not None:
            rule.answered(slot, ask, Seen(luck.uniform(10.0, 60.0), 0.0, 2.0, "answer"), NOW)
    return lambda ask: rule.choose(ask, outlook, NOW, luck, ())


def looping(outlook: Outlook) -> Decide:
    """The bare loop; its figures do not follow the request."""
    predicted = estimate(outlook, ASKS[0], NOW)
    columns = predicted.network, predicted.wait, predicted.service, outlook.bias
    parts = list(zip(*[column[: outlook.count].tolist() for column in columns], strict=True))

    def least(_: Ask) -> int:
        best, chosen = float("inf"), -1
        for slot, (network, wait, service, bias) in enumerate(parts):
            total = network + wait + service + bias
            if total < best:
                best, chosen = total, slot
        return chosen

    return least


def timed(decide: Decide, times: int) -> list[float]:
    """Microseconds of each of so many decisions."""
    clock, taken = time.perf_counter_ns, []
    for ask in islice(cycle(ASKS), times):
        started = clock()
        decide(ask)
        taken.append((clock() - started) / 1e3)
    return taken


def held_blocks(decide: Decide) -> int:
    """Blocks of memory that one decision holds."""
    held: list[object] = [None] * len(ASKS)
    before = sys.getallocatedblocks()
    for number, ask in enumerate(ASKS):
        held[number] = decide(ask)
    return round((sys.getallocatedblocks() - before) / len(ASKS))


def peak_bytes(decide: Decide) -> int:
    """The most memory that one decision has taken at a time, the median of all asks."""
    peaks = []
    tracemalloc.start()
    try:
        for ask in ASKS:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            decide(ask)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return int(median(peaks))


def rows(count: int, busy: float, rounds: int, times: int) -> list[Row]:
    luck = random.Random(count)
    outlook = an_outlook(count, busy, luck)
    makers: dict[str, Decide] = {name: deciding(name, outlook, luck) for name in RULES} | {"loop": looping(outlook)}
    taken: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(rounds):
        for name in in_round(list(makers), number):
            timed(makers[name], 20)
            taken[name] += timed(makers[name], times)
    loop_us = median(taken["loop"])
    return [a_row(name, count, busy, sorted(taken[name]), loop_us, makers[name]) for name in RULES]


def a_row(name: str, count: int, busy: float, ordered: Sequence[float], loop_us: float, decide: Decide) -> Row:
    return {
        "rule": name,
        "candidates": count,
        "busy_percent": round(busy * 100),
        "p50_us": percentile(ordered, 0.50),
        "p99_us": percentile(ordered, 0.99),
        "loop_us": loop_us,
        "ratio": percentile(ordered, 0.50) / loop_us,
        "blocks": held_blocks(decide),
        "peak_bytes": peak_bytes(decide),
    }


def hear_us(rounds: int) -> float:
    """Taking one report with queues in three classes, where two requests of our own are there too; the median."""
    luck = random.Random(1)
    outlook, queued, taken = an_outlook(10, 1.0, luck), a_queue(luck), []
    for slot in islice(cycle(range(1, 10)), 500 * rounds):
        started = time.perf_counter_ns()
        outlook.hear(slot, NOW - 0.02, 300.0, queued)
        taken.append((time.perf_counter_ns() - started) / 1e3)
    return median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decisions", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="a few seconds, coarse")
    arguments = parser.parse_args()
    before = machine()
    rounds, times = (3, 200) if arguments.quick else (11, 1_000)
    gc.disable()
    table = [row for busy in BUSY for count in COUNTS for row in rows(count, busy, rounds, times)]
    notes = [
        before,
        f"{rounds} rounds of {times} decisions of each rule, order reversed each round; garbage collector off",
        f"taking one report of a busy node: {hear_us(rounds):.1f} us",
    ]
    show(table, notes, as_json=arguments.json)


if __name__ == "__main__":
    main()
