"""The fleet as documents: nodes as the door knows them, models turned around."""

from __future__ import annotations

import msgspec
import pytest

from mesh import fleet
from mesh.cli.fleet import HARDWARE, _backend, held
from mesh.membership import NodeView
from mesh.messages import DeviceGauges, Gauges, Report
from tests.builders import OTHER_DIGEST, a_model_load, a_report


def a_view(report: Report, state: str = "ready") -> NodeView:
    return NodeView(report, state, 0.0, 0.0, 0.0)  # type: ignore[arg-type]


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
    gauges = row["gauges"]
    assert (gauges.pop("devices"), gauges.pop("unknown")) == ([], {})
    assert set(gauges.values()) == {None}
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


def test_the_hardware_of_a_node_is_carried_whole_unknowns_and_reasons_included() -> None:
    gpu = DeviceGauges("RTX", "nvml", utilization_percent=70.0, power_w=90.0, unknown={"energy_j": "not supported"})
    report = a_report(gauges=Gauges(devices=(gpu, DeviceGauges("second", power_w=10.0))), capacity=0.6)
    document = msgspec.json.decode(msgspec.json.encode(fleet.nodes(report, [])))
    (row,) = document["nodes"]
    device = row["gauges"]["devices"][0]
    assert (device["utilization_percent"], device["energy_j"], device["throttled"]) == (70.0, None, None)
    assert device["unknown"] == {"energy_j": "not supported"}
    shown = {name: read(row) for name, read in HARDWARE.items()}
    assert shown == {"gpu %": 70.0, "gpu °C": None, "gpu W": 100.0, "J/inference": None, "capacity %": 60.0}


def test_a_model_says_what_it_runs_on_and_how_far_its_engine_is() -> None:
    building = msgspec.structs.replace(
        a_model_load(state="BUILDING"), progress=0.4, requested="tensorrt", effective="onnxruntime-cpu"
    )
    (row,) = fleet.nodes(a_report(models=(building,)), [])["nodes"]
    (at,) = held([row])[0]["nodes"]
    assert (at["state"], at["progress"]) == ("BUILDING", 0.4)
    assert (at["requested"], at["effective"]) == ("tensorrt", "onnxruntime-cpu")


@pytest.mark.parametrize(
    ("requested", "effective", "shown"),
    [
        ("tensorrt", "tensorrt", "tensorrt"),
        ("tensorrt", "tensorrt-rtx", "tensorrt-rtx"),  # as asked, and not degraded
        ("tensorrt", "onnxruntime-cpu", "[yellow]onnxruntime-cpu[/] for tensorrt"),
        ("onnxruntime-tensorrt", "onnxruntime-cuda", "[yellow]onnxruntime-cuda[/] for onnxruntime-tensorrt"),
        ("tensorrt", None, "tensorrt"),
        (None, None, "-"),
    ],
)
def test_a_backend_that_is_not_the_one_asked_for_stands_out(
    requested: str | None, effective: str | None, shown: str
) -> None:
    assert _backend(requested, effective) == shown
