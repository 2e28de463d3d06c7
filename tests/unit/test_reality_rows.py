"""The arithmetic of the bench on real processes: how busy, which runs count, what the table says."""

from __future__ import annotations

import pytest

from tests.bench.reality.__main__ import row, verdicts
from tests.bench.reality.busy import Busy, used
from tests.bench.reality.run import Figures, Run, route_shares
from tests.bench.reality.scenarios import CASES, SLOWER
from tests.bench.reality.sharing import SharedWire


def made(attainment: float, p99_ms: float = 300.0) -> Figures:
    return Figures(attainment, 100.0, p99_ms, 1.0, {"local": 50.0, "peer": 30.0, "cloud": 20.0})


def a_run(attainment: float, invalid: str = "") -> Run:
    return Run(made(attainment), 20.0, 15.0, 0.0, 1.0, {200: 10}, 0, invalid)


def test_busy_is_what_was_not_idle() -> None:
    assert used((10.0, 4.0), (14.0, 7.0)) == pytest.approx(0.25)
    assert used((10.0, 4.0), (10.0, 4.0)) == 0.0


def test_a_machine_is_saturated_by_its_mean_or_by_moments_without_time_to_spare() -> None:
    assert not Busy([0.5] * 100).saturated
    assert Busy([0.7] * 100).saturated
    assert Busy([0.3] * 95 + [1.0] * 5).saturated


def test_shares_are_of_all_arrivals() -> None:
    assert route_shares(["local", "local", "cloud", ""]) == {"local": 50.0, "peer": 0.0, "cloud": 25.0}


def test_runs_that_say_nothing_are_left_out_with_their_simulations() -> None:
    pairs = [(made(99.0), a_run(97.0)), (made(95.0), a_run(94.0)), (made(99.0), a_run(10.0, "the machine was busy"))]
    found = row("bursts", "ours", pairs)
    assert (found["runs"], found["invalid"]) == (2, 1)
    assert (found["simulated"], found["real"], found["difference"]) == (97.0, 95.5, -1.5)


def test_a_row_without_a_valid_run_has_no_figures() -> None:
    found = row("bursts", "ours", [(made(99.0, float("inf")), a_run(10.0, "the machine was busy"))])
    assert found["real"] is None
    assert found["p99_sim_ms"] is None


def test_the_verdict_names_the_order_and_what_is_far_off() -> None:
    rows = [
        row("bursts", policy, [(made(simulated), a_run(real))])
        for policy, simulated, real in (("ours", 99.0, 98.0), ("peak-ewma", 97.0, 96.0), ("local-only", 90.0, 97.0))
    ]
    order, far = verdicts(rows)
    assert order == "bursts: ours > local-only > peak-ewma, simulated ours > peak-ewma > local-only"
    assert far == "bursts: local-only is +7.0 points off, over the aim of 3"


@pytest.mark.parametrize("name", CASES)
def test_arrivals_are_those_of_the_seed_and_times_are_slower(name: str) -> None:
    case = CASES[name].lasting(5.0)
    assert case.environment(3).requests == case.environment(3).requests
    assert case.environment(3).requests != case.environment(4).requests
    assert [model.slo_ms for model in case.scenario.models] == [150.0 * SLOWER, 400.0 * SLOWER]


def test_a_slowdown_is_in_the_simulation_too() -> None:
    case = CASES["slowed"].lasting(10.0)
    assert case.slowdown is not None
    heat = case.environment(1).heat[case.slowdown.node]
    assert [heat.at(now) for now in (2.9, 3.0, 7.9, 8.0)] == [1.0, 3.0, 3.0, 1.0]


def wire(rate: float) -> tuple[SharedWire, list[object]]:
    through: list[object] = []
    return SharedWire(rate, through.append), through


def test_transfers_share_a_wire_alike() -> None:
    shared, through = wire(100.0)
    shared.begin("long", 300.0, 0.0)
    shared.begin("short", 50.0, 1.0)
    assert shared.next_s() == pytest.approx(2.0)  # 50 bytes at half the rate
    shared.advance(2.0)
    assert through == ["short"]
    assert shared.next_s() == pytest.approx(3.5)
    shared.advance(3.5)
    assert through == ["short", "long"]
    assert shared.carried == pytest.approx(350.0)
    assert shared.next_s() == float("inf")


def test_who_gives_up_leaves_its_share_to_the_others() -> None:
    shared, through = wire(100.0)
    shared.begin("one", 100.0, 0.0)
    shared.begin("other", 100.0, 0.0)
    shared.give_up("one", 1.0)
    assert shared.next_s() == pytest.approx(1.5)
    shared.advance(9.0)
    assert through == ["other"]
    assert shared.carried == pytest.approx(150.0)
