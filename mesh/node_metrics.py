"""The metrics that every node has: its doors, its router, the nodes it sees, and what its own report says.

Labels are models that are held somewhere in the mesh, and words of lists: nothing that a caller wrote, no address.
Not here: what only an agent can tell (``edge.metrics``), the text (``metrics``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from mesh.cascade import Policy
from mesh.dataplane import Dataplane
from mesh.messages import DeviceGauges, Gauges, ModelLoad, Report
from mesh.metrics import Family, Measured
from mesh.router import Router
from mesh.tally import Requests
from mesh.values import InstanceState, NodeState
from mesh.ways import NodeWays

_VERSIONED = ("model", "version")

BUILD = Family("mesh_build_info", "gauge", "Always 1: the release that runs.", ("version",))
NODE = Family("mesh_node_info", "gauge", "Always 1: who this node is.", ("node", "site", "tier", "role"))
READY = Family("mesh_node_ready", "gauge", "1 while the door serves and no model is still on its way.")
CAPACITY = Family("mesh_node_capacity_ratio", "gauge", "Share of its speed at cool clocks that it expects to have.")
WAIT = Family("mesh_wait_seconds", "gauge", "Predicted wait of a new request before it starts to run here.")
NODES = Family("mesh_nodes", "gauge", "Other nodes, by the state in which this one sees them.", ("state",))
BUS = Family("mesh_bus_connected", "gauge", "1 while the bus is connected; absent where none is known yet.")
REJECTED = Family(
    "mesh_reports_rejected_total",
    "counter",
    "Reports that did not decode, were of another mesh or came as another node's.",
)
REQUESTS = Family(
    "mesh_requests_total",
    "counter",
    "Requests at the doors. outcome: ok, the code of the error, or cancelled where the caller left. route: where it "
    "ran, empty without an answer. caller: application, or node for what another node passed on.",
    (*_VERSIONED, "route", "outcome", "caller"),
)
SECONDS = Family(
    "mesh_request_seconds",
    "histogram",
    "From a request's arrival at the door to its answer; only answers.",
    (*_VERSIONED, "route", "caller"),
)
OPEN = Family("mesh_requests_in_flight", "gauge", "Requests at the doors that are not answered yet.")
TASKS = Family("mesh_tasks", "gauge", "Tasks of the event loop: what a door leaves behind would show here.")
RETRIES = Family("mesh_retries_total", "counter", "Tries after the first, by the code that ended the last.", ("code",))
DECISIONS = Family(
    "mesh_decisions_total",
    "counter",
    "Decisions of this node's router where a request goes, by their reason.",
    ("reason",),
)
PREDICTION_ERROR = Family(
    "mesh_prediction_error_seconds",
    "histogram",
    "By how much answers came sooner or later than the router predicted; what runs here at once is not predicted.",
    ("route",),
)

CASCADES = Family(
    "mesh_cascade_answers_total",
    "counter",
    "Answers of models with a cascade, asked for here. answered: small, large, or unread, a small one's that tells no "
    "confidence.",
    (*_VERSIONED, "answered"),
)
ESCALATIONS = Family(
    "mesh_cascade_escalations_total",
    "counter",
    "Answers the small model was not sure of. outcome: agreed, differed or incomparable where the large one answered; "
    "else the small one's went out, late: the deadline was too near, or the code of the large one's error.",
    (*_VERSIONED, "outcome"),
)
AUDITS = Family(
    "mesh_cascade_audits_total",
    "counter",
    "Sure answers the large model was asked about too. outcome: agreed, differed, incomparable, failed without an "
    "answer, dropped where too many were under way.",
    (*_VERSIONED, "outcome"),
)
AGREEMENT = Family(
    "mesh_cascade_agreement_ratio",
    "gauge",
    "Estimated share of sure answers with which the large model agrees; absent while unknown.",
    _VERSIONED,
)
THRESHOLD = Family(
    "mesh_cascade_threshold_ratio", "gauge", "Confidence from which on the small model's answer counts.", _VERSIONED
)

SEQUENCES = Family("mesh_sequences", "gauge", "Sequences that this door keeps, being the first one of their requests.")
SEQUENCE_BYTES = Family("mesh_sequence_memory_bytes", "gauge", "Inputs, answers and states kept for them.")
MOVES = Family(
    "mesh_sequence_moves_total", "counter", "Sequences made anew, because who held one was gone or held it no longer."
)

STATE = Family("mesh_model_state", "gauge", "1 for the state a version here is in, else 0.", (*_VERSIONED, "state"))
BACKEND = Family(
    "mesh_model_backend_info",
    "gauge",
    "Always 1: the backend asked for, and the one a version runs on; empty until it is READY.",
    (*_VERSIONED, "requested", "effective"),
)
BUILDING = Family(
    "mesh_engine_build_progress_ratio", "gauge", "Share of the engine that is built, while one is.", _VERSIONED
)
MEMORY = Family("mesh_model_memory_bytes", "gauge", "Measured footprint of a version.", _VERSIONED)
IN_FLIGHT = Family("mesh_model_in_flight", "gauge", "Inferences admitted and unanswered, queued ones too.", _VERSIONED)
SERVICE = Family(
    "mesh_model_service_seconds", "gauge", "Learned time of one inference now; absent until one ran.", _VERSIONED
)

_BOX = {
    "memory_used_bytes": (Family("mesh_box_memory_used_bytes", "gauge", "Memory of the box in use."), 1.0),
    "memory_total_bytes": (Family("mesh_box_memory_bytes", "gauge", "Memory of the box, or its limit."), 1.0),
    "cpu_percent": (Family("mesh_box_cpu_ratio", "gauge", "Share of all processors in use."), 0.01),
    "temperature_c": (Family("mesh_box_temperature_celsius", "gauge", "Temperature of the box."), 1.0),
    "memory_pressure_percent": (
        Family("mesh_box_memory_pressure_ratio", "gauge", "Share of the last 10 s with something waiting for memory."),
        0.01,
    ),
    "joule_per_inference": (
        Family("mesh_inference_energy_joules", "gauge", "Energy of its device per inference over the last minute."),
        1.0,
    ),
}
"""By reading: the family, and what one unit of it is there."""

DEVICE = Family("mesh_device_info", "gauge", "Always 1: a device, and who reads it.", ("device", "name", "source"))
THROTTLED = Family("mesh_device_throttled", "gauge", "1 while its clocks are held down.", ("device",))
_DEVICE = {
    "utilization_percent": (Family("mesh_device_utilization_ratio", "gauge", "Share of time busy.", ("device",)), 0.01),
    "memory_used_bytes": (Family("mesh_device_memory_used_bytes", "gauge", "Memory in use.", ("device",)), 1.0),
    "memory_total_bytes": (Family("mesh_device_memory_bytes", "gauge", "Memory there is.", ("device",)), 1.0),
    "temperature_c": (Family("mesh_device_temperature_celsius", "gauge", "Temperature.", ("device",)), 1.0),
    "power_w": (Family("mesh_device_power_watts", "gauge", "Power drawn.", ("device",)), 1.0),
    "clock_mhz": (Family("mesh_device_clock_hertz", "gauge", "Clock now.", ("device",)), 1e6),
    "clock_max_mhz": (Family("mesh_device_clock_max_hertz", "gauge", "Highest clock.", ("device",)), 1e6),
    "throttle_events": (
        Family("mesh_device_throttle_events_total", "counter", "Times its clocks were held down.", ("device",)),
        1.0,
    ),
    "energy_j": (Family("mesh_device_energy_joules_total", "counter", "Energy since the start.", ("device",)), 1.0),
}

FAMILIES = (
    *(BUILD, NODE, READY, CAPACITY, WAIT, NODES, BUS, REJECTED, REQUESTS, SECONDS, OPEN, TASKS),
    *(RETRIES, DECISIONS, PREDICTION_ERROR),
    *(CASCADES, ESCALATIONS, AUDITS, AGREEMENT, THRESHOLD),
    *(SEQUENCES, SEQUENCE_BYTES, MOVES),
    *(STATE, BACKEND, BUILDING, MEMORY, IN_FLIGHT, SERVICE),
    *(family for family, _ in _BOX.values()),
    *(DEVICE, THROTTLED, *(family for family, _ in _DEVICE.values())),
)


def node_metrics(dataplane: Dataplane, router: Router, ways: NodeWays) -> Iterator[Measured]:
    """All of them as of now; call it on the node's loop."""
    report, watcher = dataplane.report(), dataplane.view.watcher
    seen = Counter(view.state for view in watcher.membership.nodes())
    yield BUILD, {(dataplane.identity.version,): 1.0}
    yield NODE, {(report.node, report.site, report.tier, report.role): 1.0}
    yield READY, {(): float(dataplane.ready())}
    yield CAPACITY, {(): report.capacity}
    yield WAIT, {(): report.wait_ms / 1e3}
    yield NODES, {(state,): float(seen[state]) for state in get_args(NodeState)}
    yield BUS, _known({(): ways.bus_connected})
    yield REJECTED, {(): float(watcher.rejected)}
    yield from _requests(dataplane.requests)
    yield OPEN, {(): float(dataplane.in_flight)}
    yield TASKS, {(): float(len(asyncio.all_tasks()))}
    yield RETRIES, {(code,): float(count) for code, count in router.retries.items()}
    yield DECISIONS, {(reason,): float(count) for reason, count in router.dispatch.reasons.items()}
    yield PREDICTION_ERROR, {(route,): error for route, error in router.dispatch.residuals.items()}
    yield from _cascades(dataplane.cascades.policies)
    yield SEQUENCES, {(): float(len(dataplane.sequencer))}
    yield SEQUENCE_BYTES, {(): float(dataplane.sequencer.nbytes)}
    yield MOVES, {(): float(dataplane.sequencer.moves)}
    yield from _models(report)
    yield from _readings(report.gauges)


def _requests(requests: Requests) -> Iterator[Measured]:
    counts: dict[tuple[str, ...], float] = {
        (model, version, route, "ok", caller): float(seconds.count)
        for (model, version, route, caller), seconds in requests.answered.items()
    }
    for (model, version, outcome, caller), count in requests.failed.items():
        counts[model, version, "", outcome, caller] = float(count)
    yield REQUESTS, counts
    yield SECONDS, dict(requests.answered)


def _cascades(policies: dict[tuple[str, str], Policy]) -> Iterator[Measured]:
    def counts(of: Callable[[Policy], Counter[str]]) -> dict[tuple[str, ...], float]:
        return {(*key, word): float(n) for key, policy in policies.items() for word, n in of(policy).items()}

    yield CASCADES, counts(lambda policy: policy.answered)
    yield ESCALATIONS, counts(lambda policy: policy.escalations)
    yield AUDITS, counts(lambda policy: policy.audits)
    yield AGREEMENT, _known({key: policy.calibration.agreement for key, policy in policies.items()})
    yield THRESHOLD, {key: policy.calibration.threshold for key, policy in policies.items()}


def _models(report: Report) -> Iterator[Measured]:
    """A version may be here twice for a while, with the bytes of before and those of now: what can be added is."""
    models = report.models
    states = {(m.name, m.version, m.state) for m in models}
    yield (
        STATE,
        {(*of, state): float((*of, state) in states) for of in map(_of, models) for state in get_args(InstanceState)},
    )
    yield BACKEND, {(*_of(m), m.requested, m.effective): 1.0 for m in models if m.requested}
    yield BUILDING, _known({_of(m): m.progress for m in models if m.progress is not None})
    yield MEMORY, _added((_of(m), m.memory_bytes) for m in models)
    yield IN_FLIGHT, _added((_of(m), m.in_flight) for m in models)
    yield SERVICE, {_of(m): m.service_ms / 1e3 for m in models if m.service_ms}


def _readings(gauges: Gauges) -> Iterator[Measured]:
    for reading, (family, unit) in _BOX.items():
        yield family, _known({(): _times(getattr(gauges, reading), unit)})
    devices = [(str(index), device) for index, device in enumerate(gauges.devices)]
    yield DEVICE, {(index, device.name, device.source): 1.0 for index, device in devices}
    yield THROTTLED, _known({(index,): _throttled(device) for index, device in devices})
    for reading, (family, unit) in _DEVICE.items():
        yield family, _known({(index,): _times(getattr(device, reading), unit) for index, device in devices})


def _of(model: ModelLoad) -> tuple[str, str]:
    return model.name, model.version


def _throttled(device: DeviceGauges) -> bool | None:
    return None if device.throttled is None else bool(device.throttled)


def _times(reading: float | None, unit: float) -> float | None:
    return None if reading is None else reading * unit


def _known(values: dict[tuple[str, ...], float | None]) -> dict[tuple[str, ...], float]:
    """What is unknown is absent, never zero."""
    return {labels: float(value) for labels, value in values.items() if value is not None}


def _added(values: Iterable[tuple[tuple[str, str], float | None]]) -> dict[tuple[str, ...], float]:
    total: dict[tuple[str, ...], float] = {}
    for labels, value in values:
        if value is not None:
            total[labels] = total.get(labels, 0.0) + value
    return total
