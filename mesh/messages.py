"""Every message nodes tell each other about themselves, and its two wire forms. Nothing else.

A :class:`Report` is a node's heartbeat: JSON on the LAN (``GET /mesh/v1/report``) and on the bus. A :class:`Load` is
the small part of it that rides on every reply as the header ``Mesh-Load``. All durations are milliseconds; no message
carries wall time, liveness is judged on the receiver's clock. Unknown fields are ignored, so that neighbours of the
next version are understood. Not here: inference bodies (``oip``), subjects.
"""

from __future__ import annotations

import math

import msgspec

from mesh.errors import ProtocolError
from mesh.values import InstanceState, ModelIdentity, Tier

VERSION = 1
MAX_REPORT_BYTES = 256 * 1024


class ModelLoad(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model on one node: who it is, and how busy."""

    name: str
    version: str
    digest: str
    state: InstanceState
    in_flight: int = 0
    """Requests of this model admitted and unanswered, queued ones included."""
    service_ms: float = 0.0
    """Learned time one inference takes on this node now; 0 until the first one ran."""
    deadline_ms: float = 0.0
    """The model's own default deadline, 0 where the setting decides."""
    reason: str = ""
    """Why it is FAILED, QUARANTINED, DRAINING (evicted, or being unloaded), LOADING again, or READY on another backend
    than the one asked for."""
    progress: float | None = None
    """Share of the TensorRT engine that is built, 0 to 1, while one is."""
    requested: str = ""
    """Backend asked for."""
    effective: str = ""
    """Backend it runs on (DESIGN D8); empty until it is loaded."""
    memory_bytes: int | None = None
    """Measured footprint: the sum of its worker's memory and its share of the GPU's; None where either is unknown."""
    instances: int = 1
    """Inferences of it that may run at the same time."""

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.name, self.version, self.digest)


class DeviceGauges(msgspec.Struct, frozen=True, omit_defaults=True):
    """Readings of one accelerator; None is unknown, never zero, and ``unknown`` says why."""

    name: str
    source: str = ""
    """What was read: "nvml", "jetson-orin", "jetson-thor"."""
    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    unified_memory: bool = False
    """Whether that memory is the box's own, already counted there."""
    temperature_c: float | None = None
    power_w: float | None = None
    clock_mhz: float | None = None
    clock_max_mhz: float | None = None
    throttled: tuple[str, ...] | None = None
    """Why clocks are held down now; empty if they are not."""
    throttle_events: int | None = None
    """How often that began since the agent started."""
    energy_j: float | None = None
    """Energy since the agent started."""
    unknown: dict[str, str] = {}
    """Why a reading is None, by its name."""


class Gauges(msgspec.Struct, frozen=True, omit_defaults=True):
    """Readings of the box; None is unknown, never zero."""

    cpu_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    devices: tuple[DeviceGauges, ...] = ()
    joule_per_inference: float | None = None
    """Energy of the device that is used over the inferences of the last minute; on a Jetson of the whole module."""
    memory_pressure_percent: float | None = None
    """Share of the last 10 s in which something waited for memory."""
    unknown: dict[str, str] = {}
    """Why a reading is None, by its name."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A node's sign of life: what it is, what it holds, how busy it is.

    ``(incarnation, seq)`` orders the reports of one node; a higher incarnation is a later start. ``ttl_ms`` is how long
    the receiver may believe it. ``state`` "left" is the goodbye.
    """

    v: int = VERSION
    node: str
    site: str
    mesh: str
    tier: Tier
    incarnation: int
    seq: int
    ttl_ms: int
    state: str
    """"starting", "ready", "draining" or "left"."""
    role: str = "agent"
    """"agent", or "router" for a mesh-cloud replica, which holds no models."""
    http: str = ""
    """HOST:PORT of the node's own HTTP door, where it can be reached directly; empty where it cannot."""
    host: str = ""
    """Token of the host's network namespace: a loopback door counts only for receivers with the same one."""
    nats: str = ""
    """The bus this node is on, without credentials, for neighbours that look for one."""
    hop_key: str = ""
    """Hex secret with which callers prove that they share the bus; only ever sent on the bus."""
    wait_ms: float = 0.0
    """Predicted wait before a new request starts to run: admitted work over capacity."""
    capacity: float = 1.0
    """Share of its speed at cool clocks that the node expects to have shortly, 0 to 1: below 1 where it throttles or is
    about to. Service times and wait are reported with it already."""
    models: tuple[ModelLoad, ...] = ()
    gauges: Gauges = Gauges()

    def load(self, model: str, version: str) -> Load:
        found = next((m for m in self.models if m.name == model and m.version == version), None)
        return Load(
            incarnation=self.incarnation,
            seq=self.seq,
            state=self.state,
            wait_ms=self.wait_ms,
            in_flight=found.in_flight if found else 0,
            service_ms=found.service_ms if found else 0.0,
        )


class Load(msgspec.Struct, frozen=True):
    """The load report on a reply (header ``Mesh-Load``): the node's state now, seen from one model."""

    incarnation: int
    seq: int
    state: str
    wait_ms: float
    in_flight: int
    service_ms: float

    def header(self) -> str:
        return f"{self.incarnation};{self.seq};{self.state};{self.wait_ms:.3f};{self.in_flight};{self.service_ms:.3f}"

    @classmethod
    def from_header(cls, text: str) -> Load:
        """Raises ``ProtocolError`` on anything that :meth:`header` did not write."""
        try:
            incarnation, seq, state, wait_ms, in_flight, service_ms = text.split(";")
            load = cls(int(incarnation), int(seq), state, float(wait_ms), int(in_flight), float(service_ms))
        except ValueError:
            raise ProtocolError("a neighbour sent a load report that is not one") from None
        if not (math.isfinite(load.wait_ms) and math.isfinite(load.service_ms)):
            raise ProtocolError("a neighbour sent a load report without numbers")
        return load


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Report)


def encode_report(report: Report) -> bytes:
    return _encoder.encode(report)


def decode_report(payload: bytes) -> Report:
    """Raises ``ProtocolError`` on anything that is not a report of this version, before trusting any of it."""
    if len(payload) > MAX_REPORT_BYTES:
        raise ProtocolError(f"a report of {len(payload)} bytes is over the limit of {MAX_REPORT_BYTES}")
    try:
        report = _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a neighbour sent a report that does not decode: {error}") from None
    if report.v != VERSION:
        raise ProtocolError(f"a neighbour speaks version {report.v} of the mesh, this node {VERSION}")
    return report
