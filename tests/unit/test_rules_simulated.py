"""The rivals of the product choose as those of the simulator do, request by request."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace
from typing import NoReturn

import pytest

from mesh.estimator import Ask, estimate
from mesh.link import LAN, WAN, Link, Wire
from mesh.outlook import Outlook, Sent
from mesh.rules import RULES, Kind, PeakEwma, PrequalNet, Rule, Seen
from tests.bench.offload import policy as bench
from tests.bench.offload.baselines_latency import PeakEwma as SimulatedPeakEwma
from tests.bench.offload.prequal import Prequal as SimulatedPrequal

MOSTLY: tuple[Kind, ...] = ("answer",) * 9 + ("refusal",)


class Around(SimpleNamespace):
    """The simulator's view of a router, read from an outlook."""

    def truth(self) -> NoReturn:
        raise AssertionError("no rival may know the truth")

    def candidates(self, request: bench.Request) -> list[int]:
        return list(range(self.outlook.count))

    def in_flight(self, node: int) -> int:
        count: int = self.outlook.in_flight(node)
        return count

    def network_ms(self, node: int, request: bench.Request) -> float:
        return float(estimate(self.outlook, self.ask, self.now).network[node])

    def report(self, node: int) -> bench.Report:
        told = self.in_flight(node) if node == 0 else int(self.outlook.reported_in_flight[node])
        return bench.Report(node, self.now, self.now, 0.0, 1.0, 0.0, told, ())


@pytest.mark.parametrize(
    ("product", "simulated"),
    [
        (PeakEwma(), SimulatedPeakEwma(tau_s=10.0, failure=1.0)),
        (PrequalNet(), SimulatedPrequal(network=True)),
        (RULES["prequal-net"](), SimulatedPrequal(network=True, probes=6.0, quantile=0.95, share=1.0)),
    ],
    ids=["peak-ewma", "prequal as published", "prequal as tuned"],
)
def test_a_rival_chooses_as_in_the_simulator(product: Rule, simulated: bench.Policy) -> None:
    """The same luck, reports, links and outcomes for both."""
    outlook, luck, times = Outlook(), (Random(5), Random(5)), Random(9)
    up, down = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
    for slot in range(7):
        outlook.slot(f"n{slot}", 0.0, None if slot == 0 else Link(LAN) if slot < 4 else Link(WAN, up, down))
        outlook.wire(slot, 0.0)
        outlook.told(slot, 0, 8.0, 8.0)
        outlook.penalty[slot] = 0.0
    profiles = tuple(bench.Node(slot, 0, "edge", ((6.0, 2.0, 1),)) for slot in range(7))
    world = Around(outlook=outlook, luck=luck[1], nodes=profiles, now=0.0)
    under_way: list[tuple[float, int, int, Ask, bench.Request, float]] = []
    picked: Counter[int] = Counter()
    for number in range(600):
        now = world.now = number * 0.004
        while under_way and under_way[0][0] <= now:
            _, slot, token, ask, request, network_ms = under_way.pop(0)
            outlook.ended(slot, token)
            took_ms, kind = times.choice([4.0, 25.0, 60.0]) * (1 + slot % 3), times.choice(MOSTLY)
            product.answered(slot, ask, Seen(took_ms, 0.0, network_ms, kind), now)
            simulated.answered(request, slot, took_ms, kind == "answer", world)
        outlook.reported_in_flight[times.randrange(7)] = times.randrange(6)
        ask = world.ask = Ask(0, 150.0 - number / 1e3, 150.0, 20_000, 4096)
        request = bench.Request(number, 0, 0, now, now + 0.150, 20_000, 4096, 0)
        decision = product.choose(ask, outlook, now, luck[0], ())
        assert decision.slot is not None
        assert decision.slot == simulated.choose(request, world)
        picked[decision.slot] += 1
        token = outlook.send(decision.slot, Sent(now, 0, now + 0.150, 8.0))
        under_way.append(
            (now + times.random() * 0.08, decision.slot, token, ask, request, decision.estimate.network_ms)
        )
        under_way.sort(key=lambda entry: entry[0])
    assert len(picked) == 7
