"""Faults of the offload benchmark, when traffic has moved, what rides on answers and requests, the published page.

Not here: the simulated mesh without faults (``test_offload_sim``), figures (``test_offload_figures``).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.offload import curves, faults, publish
from tests.bench.offload.baselines_latency import PeakEwma
from tests.bench.offload.device import Attempt
from tests.bench.offload.environment import Environment
from tests.bench.offload.ours import Ours
from tests.bench.offload.policy import Request, World
from tests.bench.offload.reporting import lie
from tests.bench.offload.scenario import Fault, Reports, Scenario
from tests.bench.offload.scenarios import SCENARIOS
from tests.bench.offload.timeline import Timeline, attained, back_s, moved_s, pooled, timeline
from tests.bench.offload.world import Mesh


def line(*levels: tuple[int, int]) -> Timeline:
    """Ten windows for each (good, watched) of 100 arrivals and 100 dispatches."""
    good = [good for good, _ in levels for _ in range(10)]
    watched = [watched for _, watched in levels for _ in range(10)]
    return Timeline((100,) * len(good), tuple(good), (100,) * len(good), tuple(watched))


def test_when_traffic_has_moved_and_attainment_is_back() -> None:
    of = line((100, 50), (40, 50), (70, 20), (100, 5), (100, 5), (100, 5), (100, 5))
    assert moved_s(of, 1.0, 7.0) == pytest.approx(2.0)
    assert back_s(of, 1.0, 7.0, before=1.0) == pytest.approx(2.0)
    assert attained(of, 1.0, 3.0) == pytest.approx(0.55)
    assert back_s(line((100, 0), (40, 0), (40, 0), (40, 0)), 1.0, 4.0, before=1.0) == math.inf
    assert pooled([of, of]).good[0] == 200


def test_a_single_good_window_is_not_enough() -> None:
    of = line((100, 50), (40, 50), (100, 5), (100, 5), (100, 5), (100, 5))
    watched = list(of.watched)
    watched[12] = 0
    assert moved_s(replace(of, watched=tuple(watched)), 1.0, 6.0) == pytest.approx(1.0)


def quiet(name: str, **fields: object) -> Scenario:
    return replace(SCENARIOS[name], seconds=10.0, **fields)  # type: ignore[arg-type]


def test_a_slow_node_takes_ten_times_as_long_and_a_link_drops_to_a_tenth() -> None:
    slow = Environment(quiet("fault-slow", faults=(Fault("slow", 3, 0.3, 4.0),)), 1)
    assert [slow.heat[3].at(at) for at in (2.9, 3.1, 6.9, 7.1)] == [1.0, 10.0, 10.0, 1.0]
    assert slow.heat[2].at(4.0) == 1.0
    fault = Fault("link", 0, 0.3, 4.0)
    narrow, wide = (Environment(quiet("fault-link", faults=of), 1) for of in ((fault,), ()))
    ratios = [one / other for one, other in zip(narrow.up[0].rates, wide.up[0].rates, strict=True)]
    assert ratios[:10] == pytest.approx([1.0] * 3 + [0.1] * 4 + [1.0] * 3)
    assert narrow.up[1].rates == wide.up[1].rates


def test_a_liar_tells_others_but_not_itself() -> None:
    mesh = Mesh(Environment(quiet("fault-lie", faults=(Fault("lie", 3, 0.0, 10.0),)), 1), PeakEwma).run()
    device = mesh.devices[3]
    device.fault = Fault("lie", 3, 0.0, 10.0)
    told, true = mesh.reporting.says(device), device.report(mesh.now)
    assert told == lie(true, 10.0)
    assert told.service_ms == pytest.approx([ms / 10.0 for ms in true.service_ms])
    assert (told.queue, told.in_flight, told.free_ms) == ((), 0, 0.0)
    assert mesh.reporting.says(mesh.devices[2]) == mesh.devices[2].report(mesh.now)


class Lopsided(PeakEwma):
    """Node 0 sends all to node 1, all others keep what they have."""

    def choose(self, request: Request, world: World) -> int | None:
        return 1 if request.origin == 0 else request.origin


def lopsided(*, on_reply: bool) -> tuple[Mesh, list[Attempt]]:
    """A run without reports but those that ride along, and all that came back to node 0."""
    silent = Reports(lan_s=math.inf, bus_s=math.inf, on_change=False, on_reply=on_reply)
    mesh = Mesh(Environment(quiet("S9", reports=silent), 1), Lopsided)
    came: list[Attempt] = []
    ends = mesh.routers[0].ends

    def noted(attempt: Attempt, **how: Any) -> None:
        came.append(attempt)
        ends(attempt, **how)

    mesh.routers[0].ends = noted  # type: ignore[method-assign]
    return mesh.run(), came


def heard_s(mesh: Mesh, home: int, node: int) -> float:
    report = mesh.routers[home].report(node)
    assert report is not None
    return report.taken_s


def test_a_request_tells_of_its_origin() -> None:
    mesh, _ = lopsided(on_reply=True)
    assert heard_s(mesh, 1, 0) > 9.0
    assert heard_s(mesh, 2, 0) == 0.0, "nobody asked node 2"
    mesh, _ = lopsided(on_reply=False)
    assert heard_s(mesh, 1, 0) == 0.0


def test_an_answer_and_a_refusal_tell_of_their_node() -> None:
    mesh, came = lopsided(on_reply=True)
    assert heard_s(mesh, 0, 1) > 9.0
    outcomes = [mesh.outcomes[attempt.request.id] for attempt in came]
    assert outcomes.count("rejected") > 10
    for attempt, outcome in zip(came, outcomes, strict=True):
        if outcome in ("good", "rejected"):
            assert attempt.report is not None
            assert attempt.report.node == 1
    mesh, came = lopsided(on_reply=False)
    assert {attempt.report for attempt in came} == {None}


def test_an_error_tells_of_a_node_that_lives_and_nothing_of_one_that_does_not() -> None:
    for kind, tells in (("fast-fail", True), ("slow-fail", True), ("crash", False)):
        fault = Fault(kind, 1, 0.0, 10.0)  # type: ignore[arg-type]
        mesh = Mesh(Environment(quiet("S1", faults=(fault,)), 1, scale=0.1), Lopsided)
        came: list[tuple[bool, bool]] = []
        ends = mesh.routers[0].ends

        def noted(attempt: Attempt, came: list[tuple[bool, bool]] = came, ends: Any = ends, **how: Any) -> None:
            came.append((how["error"], attempt.report is not None))
            ends(attempt, **how)

        mesh.routers[0].ends = noted  # type: ignore[method-assign]
        mesh.run()
        assert (True, tells) in came, kind
        assert (True, not tells) not in came, kind


def test_dispatches_are_counted_by_window() -> None:
    mesh = Mesh(Environment(quiet("S1"), 1), Ours).run()
    of = timeline(mesh, lambda origin, node: node == origin)
    assert sum(of.arrivals) == len(mesh.outcomes)
    assert sum(of.good) == mesh.outcomes.count("good")
    assert sum(of.sent) == len(mesh.dispatched)
    assert sum(of.watched) == sum(origin == node for _, origin, node in mesh.dispatched)


def test_one_row_for_each_fault_and_policy() -> None:
    rows = faults.faults(faults.NAMES, {"ours": Ours, "peak-ewma": PeakEwma}, [1], seconds=5.0)
    assert [row["scenario"] for row in rows[::2]] == list(faults.NAMES)
    of = {(row["scenario"], row["policy"]): row for row in rows}
    for name in faults.WATCHED:
        assert of[name, "ours"]["share_before"] is not None
        assert of[name, "ours"]["good_ratio"] is None
    assert of["fault-spike", "ours"]["good_ratio"] is not None
    assert of["stale-1s", "ours"]["before"] is None


def test_the_page_is_written_again_from_its_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    monkeypatch.setattr(publish, "QUICK_SCENARIOS", ("S2",))
    monkeypatch.setattr(publish, "QUICK_POLICIES", ("ours", "peak-ewma", "omniscient"))
    monkeypatch.setattr(curves, "SCALES", (0.5, 1.0))
    monkeypatch.setattr(faults, "NAMES", ("stale-0.05s", "stale-10s", "fault-slow"))
    once, again = tmp_path / "once", tmp_path / "again"
    publish.main(["--quick", "--seconds", "2", "--jobs", "1", "--to", str(once)])
    names = {"offload.md", "offload.json", "goodput.png", "rates.png", "pareto.png", "stale.png", "calibration.png"}
    assert {path.name for path in once.iterdir()} == names
    publish.main(["--from", str(once / "offload.json"), "--to", str(again)])
    for name in names:
        assert (again / name).read_bytes() == (once / name).read_bytes(), name
    document = json.loads((once / "offload.json").read_text())
    assert {"scenario", "policy", "goodput99", "attainment", "wan_mb"} <= document["rows"][0].keys()
    assert "choose_us" not in document["rows"][0]
