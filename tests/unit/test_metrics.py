"""What a node measures, and how it is said: names by the rules, bounded labels, unknown is absent, docs in step."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge import metrics as agent_side
from mesh import hop, node_metrics
from mesh.dataplane import Dataplane, Identity
from mesh.errors import BY_CODE, InvalidRequest, MeshError, ModelNotFound, Overloaded
from mesh.heartbeat import Reporter
from mesh.messages import DeviceGauges, Gauges, ModelLoad, Work
from mesh.metrics import Family, Snapshot
from mesh.oip.wire import Limits
from mesh.tally import CANCELLED, MAX_SERIES, SECONDS, Histogram, Requests
from mesh.trust import Trust
from mesh.values import ModelRef
from tests.builders import DIGEST, OTHER_DIGEST, a_model_load, a_report, an_identity
from tests.fakes import a_request, until
from tests.routing import ME, Routing
from tests.scrape import Scrape, scrape

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
FAMILIES = (*node_metrics.FAMILIES, *agent_side.FAMILIES)
UNITS = ("seconds", "bytes", "celsius", "watts", "joules", "hertz", "ratio")


class Node:
    """A node whose routing is real but for its transports."""

    def __init__(self, routing: Routing, gauges: Gauges) -> None:
        self.routing = routing
        self.gauges = gauges
        self.dataplane = Dataplane(
            identity=Identity(ME, "test", "1.2.3"),
            router=routing.router,
            view=routing.view,
            trust=Trust("demo", ME, 1, None),
            reporter=Reporter(
                a_report(ME, seq=0),
                models=lambda: tuple(m for name in ("resnet", "twice") for m in routing.models.held(name)),
                work=lambda: Work(12.5),
                gauges=lambda: self.gauges,
                capacity=lambda: 0.75,
            ),
            still_coming=tuple,
            deadline_ms=60_000.0,
            limits=Limits(),
            inquiry=routing.inquiry,
            metrics=lambda: node_metrics.node_metrics(self.dataplane, routing.router, routing.ways),
        )

    async def scrape(self) -> Scrape:
        return Scrape((await asyncio.to_thread(Snapshot(self.dataplane.metrics()).text)).decode())

    async def infer(self, model: str = "resnet", headers: dict[str, str] | None = None) -> None:
        request = a_request()
        request.model = model
        request.version = "1" if headers else ""
        await self.dataplane.infer(request, time.monotonic(), headers, want_load=False)

    async def requests(self) -> dict[tuple[str, str, str, str], float]:
        """By model, route, outcome and caller."""
        found = await self.scrape()
        return {
            tuple(dict(labels)[name] for name in ("model", "route", "outcome", "caller")): value  # type: ignore[misc]
            for (name, labels), value in found.values.items()
            if name == "mesh_requests_total"
        }


@contextlib.asynccontextmanager
async def serving(*held: ModelLoad, gauges: Gauges | None = None) -> AsyncIterator[Node]:
    async with Routing(*held).running() as routing:
        yield Node(routing, gauges or Gauges())


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"mesh(_[a-z]+)+", family.name), family.name
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.text.endswith("."), family.name
        assert not {"le", "id", "request", "peer", "address", "digest"} & set(family.labels), family.name
        for unit in UNITS:
            bare = family.name.removesuffix("_total")
            assert f"_{unit}" not in bare or bare.endswith(unit), family.name


def test_the_page_lists_every_metric_as_it_is_declared() -> None:
    """Paste what the failure shows into ``docs/metrics.md``."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `mesh_")]
    assert rows == [row(family) for family in FAMILIES], "\n" + "\n".join(row(family) for family in FAMILIES)


def row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.text} |"


@pytest.mark.parametrize("value", [0.0, 0.0005, 0.000501, 1.0, 10.0, 10.1, 1e9])
def test_a_value_is_in_the_first_bucket_that_is_not_below_it(value: float) -> None:
    histogram = Histogram()
    histogram.observe(value)
    family = Family("mesh_x_seconds", "histogram", "X.", ("model",))
    found = scrape([(family, {("m",): histogram})])
    for bound in (*SECONDS, float("inf")):
        text = "+Inf" if bound == float("inf") else str(bound)
        assert found.get("mesh_x_seconds_bucket", model="m", le=text) == float(value <= bound)
    assert found.get("mesh_x_seconds_count", model="m") == 1.0 == histogram.count
    assert found.get("mesh_x_seconds_sum", model="m") == value


def test_labels_are_escaped_and_empty_families_left_out() -> None:
    family = Family("mesh_x", "gauge", "X.", ("name",))
    assert scrape([(family, {('a"b\\c\nd',): 1.0})]).get("mesh_x", name='a"b\\c\nd') == 1.0
    assert "mesh_x" not in Snapshot([(family, {})]).text().decode()


def test_the_process_tells_of_itself() -> None:
    assert (scrape([]).get("process_resident_memory_bytes") or 0.0) > 1e6


async def test_requests_count_by_where_they_ran_and_how_they_ended() -> None:
    async with serving(a_model_load()) as node:
        await node.infer()
        await node.infer()
        await node.infer(headers={hop.DIGEST: DIGEST, hop.HOPS: "1"})
        node.routing.models.outcome = Overloaded("full")
        with pytest.raises(MeshError):
            await node.infer()
        assert await node.requests() == {
            ("resnet", "local", "ok", "application"): 2.0,
            ("resnet", "local", "ok", "node"): 1.0,
            ("resnet", "", "overloaded", "application"): 1.0,
        }
        found = await node.scrape()
        of = {"model": "resnet", "version": "1", "route": "local", "caller": "application"}
        assert found.get("mesh_request_seconds_count", **of) == 2.0
        assert 0.0 < (found.get("mesh_request_seconds_sum", **of) or 0.0) < 60.0


async def test_what_a_caller_makes_up_begins_no_series() -> None:
    async with serving(a_model_load()) as node:
        for number in range(20):
            with pytest.raises(ModelNotFound):
                await node.infer(f"made-up-{number}")
            with pytest.raises(MeshError):
                await node.infer(f"made-up-{number}", {hop.DIGEST: OTHER_DIGEST, hop.HOPS: "1"})
            with pytest.raises(InvalidRequest):
                node.dataplane.decode(ModelRef(f"made-up-{number}"), b"garbage", None)
        counted = await node.requests()
        assert {model for model, *_ in counted} == {""}
        assert counted["", "", "model_not_found", "application"] == 20.0
        assert counted["", "", "invalid_request", "application"] == 20.0
        assert {outcome for *_, outcome, _ in counted} <= BY_CODE.keys()


async def test_a_caller_that_leaves_and_an_unexpected_error_are_outcomes_too() -> None:
    async with serving() as node:
        await node.routing.peer("peer")
        node.routing.lan.hold["peer"] = asyncio.Event()
        asked = asyncio.ensure_future(node.infer())
        await until(lambda: node.routing.lan.asked == ["peer"])
        assert (await node.scrape()).get("mesh_requests_in_flight") == 1.0
        asked.cancel()
        await asyncio.wait({asked})
        assert await node.requests() == {("resnet", "", CANCELLED, "application"): 1.0}
        assert (await node.scrape()).get("mesh_requests_in_flight") == 0.0
    requests = Requests(lambda _: True)
    requests.failure(an_identity(), "application", ZeroDivisionError())
    assert list(requests.failed) == [("resnet", "1", "internal", "application")]


def test_series_are_bounded_whatever_the_mesh_holds() -> None:
    requests = Requests(lambda _: True)
    for number in range(MAX_SERIES + 50):
        requests.answer(an_identity(f"m{number}"), "local", "application", 0.1)
        requests.failure(an_identity(f"m{number}"), "application", Overloaded("full"))
    assert requests.answered["", "", "local", "application"].count == 50
    assert requests.failed["", "", "overloaded", "application"] == 50
    assert len(requests.answered) == len(requests.failed) == MAX_SERIES + 1
    requests.answer(an_identity("m1"), "local", "application", 0.1)
    assert requests.answered["m1", "1", "local", "application"].count == 2


async def test_tries_elsewhere_count_by_what_ended_the_last() -> None:
    async with serving() as node:
        await node.routing.peer("busy")
        await node.routing.peer("free")
        node.routing.lan.outcomes["busy"] = Overloaded("full")
        while not node.routing.lan.asked.count("busy"):
            await node.infer()
        assert (await node.scrape()).get("mesh_retries_total", code="overloaded") == 1.0
        assert (await node.requests()).keys() == {("resnet", "peer", "ok", "application")}


async def test_nodes_are_counted_by_state_and_the_bus_is_told_of() -> None:
    async with serving() as node:
        await node.routing.peer("peer")
        await node.routing.on_bus("gone")
        node.routing.watcher.heard(node.routing.report("gone", state="left"))
        node.routing.watcher.heard(node.routing.report("stranger", mesh="other"))
        found = await node.scrape()
        states = {labels["state"]: found.get("mesh_nodes", **labels) for labels in found.series("mesh_nodes")}
        assert states == {"starting": 0, "ready": 1, "draining": 0, "suspect": 0, "lost": 0, "left": 1}
        assert found.get("mesh_bus_connected") == 1.0
        assert found.get("mesh_reports_rejected_total") == 1.0
        assert found.get("mesh_build_info", version="1.2.3") == 1.0
        assert found.get("mesh_node_info", node=ME, site="shop", tier="edge", role="agent") == 1.0
        assert (found.get("mesh_node_capacity_ratio"), found.get("mesh_wait_seconds")) == (0.75, 0.0125)


async def test_a_bus_that_is_not_known_yet_is_absent() -> None:
    routing = Routing()
    node = Node(routing, Gauges())
    assert (await node.scrape()).get("mesh_bus_connected") is None


async def test_models_of_this_node_say_state_backend_and_engine() -> None:
    degraded = ModelLoad(
        "resnet", "1", DIGEST, "READY", service_ms=4.0, requested="tensorrt", effective="onnxruntime-cpu",
        progress=0.25, memory_bytes=1000,
    )  # fmt: skip
    async with serving(degraded) as node:
        found = await node.scrape()
        of = {"model": "resnet", "version": "1"}
        states = {labels["state"] for labels in found.series("mesh_model_state")}
        assert states == {"LOADING", "BUILDING", "WARMING", "READY", "DRAINING", "FAILED", "QUARANTINED"}
        assert found.get("mesh_model_state", **of, state="READY") == 1.0
        assert found.get("mesh_model_state", **of, state="FAILED") == 0.0
        backend = {"requested": "tensorrt", "effective": "onnxruntime-cpu"}
        assert found.get("mesh_model_backend_info", **of, **backend) == 1.0
        assert found.get("mesh_engine_build_progress_ratio", **of) == 0.25
        assert found.get("mesh_model_memory_bytes", **of) == 1000.0
        assert found.get("mesh_model_service_seconds", **of) == 0.004


async def test_a_version_that_is_here_twice_is_one_series() -> None:
    """While a file that changed takes over from the one before."""
    old = ModelLoad("twice", "1", DIGEST, "DRAINING", 3, memory_bytes=10)
    new = ModelLoad("twice", "1", OTHER_DIGEST, "READY", 4, memory_bytes=20)
    async with serving(old, new) as node:
        found, of = await node.scrape(), {"model": "twice", "version": "1"}
        assert found.get("mesh_model_in_flight", **of) == 7.0
        assert found.get("mesh_model_memory_bytes", **of) == 30.0
        assert [found.get("mesh_model_state", **of, state=s) for s in ("DRAINING", "READY", "FAILED")] == [1, 1, 0]


async def test_readings_have_base_units_and_unknown_ones_are_absent() -> None:
    twins = (
        DeviceGauges(
            "GPU", "nvml", 50.0, power_w=20.5, clock_mhz=1500.0, throttled=(), throttle_events=0, energy_j=7.0
        ),
        DeviceGauges("GPU", "nvml", throttled=("thermal",)),
    )
    gauges = Gauges(cpu_percent=0.0, temperature_c=41.0, devices=twins, joule_per_inference=0.5)
    async with serving(gauges=gauges) as node:
        found = await node.scrape()
        assert found.get("mesh_box_cpu_ratio") == 0.0
        assert found.get("mesh_box_temperature_celsius") == 41.0
        assert found.get("mesh_box_memory_bytes") is None
        assert found.get("mesh_inference_energy_joules") == 0.5
        assert found.get("mesh_device_info", device="1", name="GPU", source="nvml") == 1.0
        assert found.get("mesh_device_utilization_ratio", device="0") == 0.5
        assert found.get("mesh_device_clock_hertz", device="0") == 1.5e9
        assert found.get("mesh_device_energy_joules_total", device="0") == 7.0
        assert found.get("mesh_device_throttle_events_total", device="0") == 0.0
        assert [found.get("mesh_device_throttled", device=d) for d in "01"] == [0.0, 1.0]
        assert found.get("mesh_device_power_watts", device="1") is None
        assert found.series("mesh_device_utilization_ratio") == [{"device": "0"}]


async def test_every_sample_of_a_node_has_the_labels_of_its_family() -> None:
    async with serving(a_model_load()) as node:
        await node.infer()
        for family, samples in node.dataplane.metrics():
            assert family in node_metrics.FAMILIES
            assert {len(labels) for labels in samples} <= {len(family.labels)}, family.name
