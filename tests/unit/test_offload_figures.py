"""Figures of the offload benchmark: goodput by search, fairness, recovery, intervals, rows, and words about them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.offload import experiment
from tests.bench.offload.baselines import LocalOnly
from tests.bench.offload.baselines_latency import PeakEwma
from tests.bench.offload.environment import Environment
from tests.bench.offload.experiment import Cell, Comparison, compare
from tests.bench.offload.goodput import HIGHEST, LOST, STEP, Counts, Goodput, Runs, search
from tests.bench.offload.lineup import Factory
from tests.bench.offload.metrics import jain, measure, recovery_s
from tests.bench.offload.ours import Ours
from tests.bench.offload.rows import interval, rows
from tests.bench.offload.scenarios import MAIN, SCENARIOS
from tests.bench.offload.verdicts import Verdict, pareto, parts, verdicts
from tests.bench.offload.world import Mesh


def failing_from(*limits: float) -> Runs:
    """One seed per limit, a factor of the rate at which exactly 1 % of its 100,000 arrivals are missed."""

    def runs(step: int, limit: float) -> Counts | None:
        counts = [(round(1000 * math.pow(STEP**step / of, 2.0)), 100_000) for of in limits]
        return counts if sum(missed for missed, _ in counts) <= limit * 100_000 * len(limits) else None

    return runs


def found(*limits: float) -> Goodput:
    return search(failing_from(*limits), len(limits))


@pytest.mark.parametrize("limit", [0.12, 0.5, 0.93, 1.0, 1.234, 7.0])
def test_goodput_is_where_a_hundredth_is_missed(limit: float) -> None:
    assert found(limit).factor() == pytest.approx(limit, rel=0.01)


def test_what_is_known_is_not_run_again_and_hopeless_rates_end_early() -> None:
    asked: list[tuple[int, float]] = []
    runs = failing_from(0.3)

    def noted(step: int, limit: float) -> Counts | None:
        asked.append((step, limit))
        return runs(step, limit)

    assert search(noted, 1, {0: runs(0, 1.0) or ()}).factor() == pytest.approx(0.3, rel=0.01)
    assert 0 not in [step for step, _ in asked]
    assert len(asked) <= 6
    assert all(limit == LOST for _, limit in asked)


@pytest.mark.parametrize("limit", [0.2, 1.0, 3.0])
def test_a_cliff_is_found_too(limit: float) -> None:
    """From nothing missed to everything, so that no line leads there."""

    def runs(step: int, most: float) -> Counts | None:
        missed = 0 if STEP**step <= limit else 900
        return [(missed, 1000)] if missed <= most * 1000 else None

    assert search(runs, 1).factor() == pytest.approx(limit, rel=STEP - 1.0)


def test_goodput_beyond_the_grid() -> None:
    assert found(0.001).factor() == 0.0
    assert found(0.001, 0.001).interval() == (0.0, 0.0)
    assert found(1000.0).factor() == pytest.approx(STEP**HIGHEST)
    assert found(1.0).ratio(found(0.001)) is None


def test_goodput_of_several_seeds_has_an_interval_and_ratios_are_paired() -> None:
    one, other = (found(*[f * limit for limit in (0.9, 1.0, 1.1, 1.2)]) for f in (1.0, 1.25))
    limits = one.interval()
    assert limits is not None
    assert limits[0] < one.factor() < limits[1]
    both = other.ratio(one)
    assert both is not None
    ratio, paired = both
    assert paired is not None
    assert ratio == pytest.approx(1.25, rel=0.01)
    assert paired[1] - paired[0] < (limits[1] - limits[0]) / 2, "what the seeds share cancels"
    assert found(1.0).interval() is None


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


ROOT = Path(__file__).parents[2]
POLICIES: dict[str, Factory] = {"ours": Ours, "peak-ewma": PeakEwma, "local-only": LocalOnly}


def test_rows_are_paired_with_the_best_baseline() -> None:
    table = {row["policy"]: row for row in rows(compare(["S1"], POLICIES, [1, 2], [1], seconds=4.0))}
    ours = table.pop("ours")
    base, worse = sorted(table.values(), key=lambda row: -float(row["goodput99"] or 0.0))
    assert ours["base"] == worse["base"] == base["policy"]
    assert base["attainment_diff"] == 0.0
    assert base["ratio"] == 1.0
    assert float(worse["ratio"] or 0.0) < 1.0
    assert float(ours["goodput99"] or 0.0) > 0.0
    assert ours["attainment_diff"] == pytest.approx(float(ours["attainment"] or 0) - float(base["attainment"] or 0))
    assert {"wan_mb", "p50_ms", "p99_ms", "p999_ms", "predicted_error", "by_prediction", "fairness"} <= ours.keys()


def test_processes_change_nothing() -> None:
    """Run as people do, for what multiprocessing leaves behind ends with the program."""
    given = "--json --scenario S1 --policy local-only peak-ewma --seconds 2 --seeds 2 --goodput-seeds 1 --jobs"
    command = [sys.executable, "-m", "tests.bench.offload", *given.split()]
    documents = []
    for jobs in ("1", "2"):
        done = subprocess.run([*command, jobs], capture_output=True, check=True, timeout=120.0, cwd=ROOT)
        document = json.loads(done.stdout)
        for row in document["rows"]:
            assert row.pop("choose_us") > 0.0, "the only figure of this machine"
        documents.append(document)
    assert documents[0] == documents[1]
    assert documents[0]["rows"][0].keys() >= {"scenario", "policy", "goodput99", "attainment", "wan_mb"}


def test_the_environment_of_a_seed_is_drawn_once() -> None:
    assert experiment.environment("S1", 1, 1.0, 4.0) is experiment.environment("S1", 1, 1.0, 4.0)


def compared(**goodput: tuple[float, float]) -> Comparison:
    """By policy, its goodput in S2 and S1, with two seeds that are alike, and an attainment that goes with it."""
    cells = {}
    for policy, values in goodput.items():
        name = policy.replace("_", "-")
        for scenario, value in zip(("S2", "S1"), values, strict=True):
            figures = [{"attainment": value / 2.0, "wan_kb_per_good": 1000.0 / value} for _ in range(2)]
            cells[scenario, name] = Cell(scenario, name, figures, 100.0, found(value / 100.0, value / 100.0))
    return Comparison([1, 2], [1, 2], cells)


def said(claims: Sequence[Verdict], claim: str, scenario: str) -> Verdict:
    return next(of for of in claims if of.claim == claim and of.scenario == scenario)


def test_verdicts_hold_ours_against_the_best_of_each_scenario() -> None:
    claims = verdicts(
        compared(ours=(120.0, 80.0), peak_ewma=(100.0, 80.0), random=(50.0, 100.0), omniscient=(200.0, 120.0))
    )
    gain = said(claims, "goodput99 over best baseline", "S2")
    assert gain.against == "peak-ewma"
    assert [gain.low, gain.value, gain.high] == pytest.approx([1.2] * 3, rel=0.01), "the seeds are alike"
    loss = said(claims, "least goodput99 over best baseline", "S1")
    assert loss.value == pytest.approx(0.8, rel=0.01)
    assert loss.row()["met"] == "no"
    assert said(claims, "share of the goodput99 gap to omniscient", "S2").value == pytest.approx(0.2, rel=0.05)
    assert said(claims, "share of the attainment gap to omniscient", "S1").value == pytest.approx(-1.0)
    assert said(claims, "geometric mean of goodput99 over best baseline", "S2").value == pytest.approx(1.2, rel=0.01)
    assert said(claims, "WAN bytes saved by ours", "S2").value == pytest.approx(1.2)
    assert verdicts(compared(peak_ewma=(100.0, 80.0))) == []


def test_parts_are_held_against_the_whole() -> None:
    (part,) = parts(compared(ours=(100.0, 100.0), ours_no_queue=(50.0, 80.0), random=(10.0, 10.0)))
    assert part["policy"] == "ours-no-queue"
    assert part["goodput99_ratio"] == pytest.approx(math.sqrt(0.5 * 0.8), rel=0.01)
    assert part["attainment_diff"] == pytest.approx(-17.5)
    assert part["worst_in"] == "S2"


def test_the_front_is_what_nothing_beats_in_both() -> None:
    found = compared(ours=(100.0, 1.0), random=(50.0, 1.0), omniscient=(150.0, 1.0))
    found.cells["S2", "random"].figures[:] = [{"attainment": 30.0, "wan_kb_per_good": 5.0}] * 2
    front = {row["policy"]: row["front"] for row in pareto(found, "S2")}
    assert front == {"ours": "yes", "random": "yes", "omniscient": "yes"}
    found.cells["S2", "random"].figures[:] = [{"attainment": 30.0, "wan_kb_per_good": 15.0}] * 2
    assert {row["policy"]: row["front"] for row in pareto(found, "S2")}["random"] == "no"


def test_every_scenario_can_be_drawn_and_main_has_eleven() -> None:
    assert list(MAIN) == [f"S{number}" for number in range(1, 12)]
    for name, scenario in SCENARIOS.items():
        world = Environment(replace(scenario, seconds=3.0), 1)
        assert world.requests, name
        assert world.rate > 0.0
        assert {fault.node for fault in scenario.faults} <= set(world.edges)
