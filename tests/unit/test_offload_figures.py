"""Figures of the offload benchmark: goodput by search, fairness, recovery, intervals, rows, and words about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.bench.offload import experiment
from tests.bench.offload.baselines_latency import PeakEwma
from tests.bench.offload.environment import Environment
from tests.bench.offload.experiment import Cell, compare, interval
from tests.bench.offload.goodput import HIGHEST, LOWEST, STEP, Counts, Goodput
from tests.bench.offload.metrics import jain, measure, recovery_s
from tests.bench.offload.ours import Ours
from tests.bench.offload.scenarios import MAIN, SCENARIOS
from tests.bench.offload.verdicts import verdicts
from tests.bench.offload.world import Mesh


def failing_from(*limits: float) -> Callable[[int], Counts]:
    """One seed per limit, a factor of the rate at which exactly 1 % of its 100,000 arrivals are missed."""

    def runs(step: int) -> Counts:
        return [(round(1000 * math.pow(STEP**step / limit, 2.0)), 100_000) for limit in limits]

    return runs


@pytest.mark.parametrize("limit", [0.06, 0.5, 1.0, 1.234, 7.0])
@pytest.mark.parametrize("hint", [LOWEST, 0, 5, HIGHEST])
def test_goodput_is_where_a_hundredth_is_missed(limit: float, hint: int) -> None:
    assert Goodput(failing_from(limit), hint).factor() == pytest.approx(limit, rel=0.01)


def test_goodput_beyond_the_grid() -> None:
    assert Goodput(failing_from(0.001)).factor() == 0.0
    assert Goodput(failing_from(1000.0)).factor() == pytest.approx(STEP**HIGHEST, rel=0.5)
    assert Goodput(failing_from(1.0)).ratio(Goodput(failing_from(0.001))) is None


def test_goodput_of_several_seeds_has_an_interval_and_ratios_are_paired() -> None:
    one, other = (Goodput(failing_from(*[f * limit for limit in (0.9, 1.0, 1.1, 1.2)])) for f in (1.0, 1.25))
    limits = one.interval()
    assert limits is not None
    assert limits[0] < one.factor() < limits[1]
    found = other.ratio(one)
    assert found is not None
    ratio, paired = found
    assert paired is not None
    assert ratio == pytest.approx(1.25, rel=0.01)
    assert paired[1] - paired[0] < (limits[1] - limits[0]) / 2, "what the seeds share cancels"
    assert Goodput(failing_from(1.0)).interval() is None


def test_fairness() -> None:
    assert jain([0.5, 0.5, 0.5]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0]) == 1.0


def test_an_interval_of_a_mean() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.30 / math.sqrt(3))
    assert interval([1.0]) is None


def finished(name: str, seconds: float = 8.0, **fields: Any) -> Mesh:
    return Mesh(Environment(replace(SCENARIOS[name], seconds=seconds, **fields), 1), Ours).run()


def test_figures_of_a_run_agree_with_its_outcomes() -> None:
    mesh = finished("S9")
    figures = measure(mesh)
    count = len(mesh.outcomes)
    assert figures["attainment"] == pytest.approx(100.0 * mesh.outcomes.count("good") / count)
    assert sum(figures[kind] for kind in ("attainment", "late", "refused", "rejected", "failed")) == pytest.approx(
        100.0
    )
    levels = [request.priority for request in mesh.environment.requests]
    by_level = [figures[f"attainment_{level}"] * levels.count(level) for level in (1, 2, 3)]
    assert sum(by_level) / count == pytest.approx(figures["attainment"])
    assert figures["p99_ms"] == math.inf, "more than a hundredth was missed"
    assert figures["p99_answered_ms"] <= 400.0
    assert 0.0 <= figures["wasted"] <= 100.0


def test_recovery_is_the_first_second_of_three_that_are_served() -> None:
    mesh = finished("S4-outage", settled=0.25)
    for request in mesh.environment.requests:
        mesh.outcomes[request.id] = "late" if 1.0 < request.born_s < 4.0 or 6.0 < request.born_s < 7.0 else "good"
    assert recovery_s(mesh) == math.inf, "second 6 breaks each run of three"
    for request in mesh.environment.requests:
        mesh.outcomes[request.id] = "late" if 1.0 < request.born_s < 4.0 else "good"
    assert recovery_s(mesh) == pytest.approx(2.0)


def test_rows_are_paired_with_the_base() -> None:
    policies: dict[str, experiment.Factory] = {"ours": Ours, "peak-ewma": PeakEwma}
    rows = compare(["S1"], policies, [1, 2], [1], seconds=4.0)
    ours, base = rows
    assert (ours["policy"], base["policy"]) == ("ours", "peak-ewma")
    assert base["attainment_diff"] == 0.0
    assert base["ratio"] == 1.0
    assert float(ours["goodput99"] or 0.0) > 0.0
    assert ours["attainment_diff"] == pytest.approx(float(ours["attainment"] or 0) - float(base["attainment"] or 0))
    assert {"wan_mb", "p50_ms", "p99_ms", "p999_ms", "predicted_error", "by_prediction", "fairness"} <= ours.keys()


def test_the_environment_of_a_seed_is_drawn_once() -> None:
    assert experiment.environment("S1", 1, 1.0, 4.0) is experiment.environment("S1", 1, 1.0, 4.0)
    assert Cell("S1", "ours", Ours).goodput is None


def rows_of(**goodput: Sequence[float]) -> list[dict[str, str | int | float | None]]:
    """By policy, its goodput in S2, S3, ..."""
    return [
        {"scenario": f"S{2 + at}", "policy": name.replace("_", "-"), "goodput99": value, "attainment": 99.0}
        for at in range(2)
        for name, values in goodput.items()
        for value in values[at : at + 1]
    ]


def test_verdicts_hold_ours_against_the_best_of_the_others() -> None:
    lines = verdicts(
        rows_of(ours=(120.0, 80.0), peak_ewma=(100.0, 80.0), random=(50.0, 100.0), omniscient=(200.0, 120.0))
    )
    assert lines[0] == "S2: goodput99 120, best baseline peak-ewma 100, 20 % of the gap to omniscient"
    assert lines[2] == "S3: goodput99 80, best baseline random 100, -100 % of the gap to omniscient"
    assert lines[-1].endswith(f"geometric mean of S2, S3: {math.sqrt(1.2 * 0.8):.3f}")
    assert verdicts(rows_of(peak_ewma=(100.0, 80.0))) == []


def test_every_scenario_can_be_drawn_and_main_has_eleven() -> None:
    assert list(MAIN) == [f"S{number}" for number in range(1, 12)]
    for name, scenario in SCENARIOS.items():
        world = Environment(replace(scenario, seconds=3.0), 1)
        assert world.requests, name
        assert world.rate > 0.0
        assert {fault.node for fault in scenario.faults} <= set(world.edges)
