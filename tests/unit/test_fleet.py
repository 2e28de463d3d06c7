"""The fleet as documents: nodes as the door knows them, models turned around."""

from __future__ import annotations

from mesh import fleet
from mesh.cli.fleet import held
from mesh.membership import NodeView
from mesh.messages import Report
from tests.builders import OTHER_DIGEST, a_model_load, a_report


def a_view(report: Report, state: str = "ready") -> NodeView:
    return NodeView(report, state, 0.0, 0.0)  # type: ignore[arg-type]


def test_nodes_are_sorted_edge_first_and_the_door_itself_is_one() -> None:
    own = a_report("m", site="b", state="starting")
    views = [
        a_view(a_report("cloud", tier="cloud", site="a")),
        a_view(a_report("z", site="a")),
        a_view(a_report("a", site="b"), "suspect"),
    ]
    rows = fleet.nodes(own, views)["nodes"]
    assert [(row["node"], row["state"]) for row in rows] == [
        ("z", "ready"), ("a", "suspect"), ("m", "starting"), ("cloud", "ready"),
    ]  # fmt: skip


def test_what_is_unknown_is_null_and_never_zero() -> None:
    (row,) = fleet.nodes(a_report(models=(a_model_load(service_ms=0.0),)), [])["nodes"]
    assert row["models"][0]["service_ms"] is None
    assert set(row["gauges"].values()) == {None}
    lost = fleet.nodes(a_report("me"), [a_view(a_report("gone", wait_ms=5.0), "lost")])["nodes"][0]
    assert (lost["node"], lost["wait_ms"]) == ("gone", None)


def test_models_name_their_holders_and_differ_by_digest() -> None:
    own = a_report("a", models=(a_model_load("m"),))
    others = [
        a_view(a_report("b", models=(a_model_load("m"), a_model_load("k", state="FAILED")))),
        a_view(a_report("c", models=(a_model_load("m", digest=OTHER_DIGEST),))),
        a_view(a_report("gone", models=(a_model_load("m"),)), "lost"),
    ]
    rows = held(fleet.nodes(own, others)["nodes"])
    assert [(row["name"], [at["node"] for at in row["nodes"]]) for row in rows] == [
        ("k", ["b"]), ("m", ["a", "b"]), ("m", ["c"]),
    ]  # fmt: skip
