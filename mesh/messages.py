"""Every message nodes tell each other about themselves, and its two wire forms. Nothing else.

A :class:`Report` is a node's heartbeat: JSON on the LAN (``GET /mesh/v1/report``) and on the bus. A :class:`Load` is
the small part of it that rides on every reply as the header ``Mesh-Load``. All durations are milliseconds; no message
carries wall time, liveness is judged on the receiver's clock. Unknown fields are ignored, so that neighbours of the
next version are understood. Not here: inference bodies (``oip``), subjects.
"""

from __future__ import annotations

import msgspec

from mesh.declarations import Cascade
from mesh.errors import ProtocolError
from mesh.values import InstanceState, ModelIdentity, Tier

VERSION = 1
MAX_REPORT_BYTES = 256 * 1024
MAX_LOAD_CHARS = 2048
"""Of a ``Mesh-Load``; every bin of every class in use takes about 1,500."""
MAX_FIGURE = 1e9
"""Highest time (more than eleven days), rate and count that is believed."""
MAX_UPLINK_BYTES = 1 << 50


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
    row_ms: float = 0.0
    """What one more inference adds to a queue here: its share of the run that costs least per row; 0 while unknown."""
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
    stay: str = ""
    """Where its requests may run, seen from the door they came to: "node", "site", "region"; empty is anywhere."""
    cascade: Cascade | None = None
    decoupled: bool = False
    """Whether it answers a request any number of times, so that it can only be asked by stream."""
    stateful: bool = False
    """Whether its requests belong to sequences."""
    idle_s: float = 0.0
    """How long a sequence may idle; 0 where the setting decides."""

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


CLASSES = 16
"""Lowest class of priority: requests that were given none, and those of a larger number."""

EDGES_MS = tuple(25.0 * 2**power for power in range(8))
"""Upper edges of the bins of :data:`Queued`; what has more time left than the last one is in a ninth bin."""

Queued = tuple[tuple[int, tuple[float, ...]], ...]
"""Queued work in milliseconds: by class of priority (1 goes first) and, inside a class, by time left to the deadline in
the bins of :data:`EDGES_MS`. Empty classes, and empty bins behind the last that is not, are left out."""
BINS = len(EDGES_MS) + 1
_HEADER = "%d;%d;%s;%.3f;%d;%.3f;%.3f;%d;%s"
_BINS = [",".join(["%.3g"] * count) for count in range(BINS + 1)]
"""By how many there are. One format of all takes half the time of one for each."""


class Work(msgspec.Struct, frozen=True):
    """What a node has to do now, as its reports say it; ``IDLE`` is nothing at all."""

    wait_ms: float = 0.0
    queued: Queued = ()


IDLE = Work()


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
    region: str = ""
    """Sites of one region may trade what must not leave it."""
    host: str = ""
    """Token of the host's network namespace: a loopback door counts only for receivers with the same one."""
    nats: str = ""
    """The bus this node is on, without credentials, for neighbours that look for one."""
    hop_key: str = ""
    """Hex secret with which callers prove that they share the bus; only ever sent on the bus."""
    wait_ms: float = 0.0
    """Predicted wait of a request that goes last: what is left of the runs in progress, and all that is queued."""
    queued: Queued = ()
    """The part of it that is queued, by who goes first."""
    uplink_bytes: int = 0
    """Bytes this node has under way to other sites: they go before those of its neighbours on the site's uplink."""
    capacity: float = 1.0
    """Share of its speed at cool clocks that the node expects to have shortly, 0 to 1: below 1 where it throttles or is
    about to. Service times and wait are reported with it already."""
    models: tuple[ModelLoad, ...] = ()
    gauges: Gauges = Gauges()

    @property
    def work(self) -> Work:
        return Work(self.wait_ms, self.queued)

    @property
    def plausible(self) -> bool:
        """Whether all figures that routing goes by can be true."""
        return _plausible(self) and all(_bounded(m.in_flight, m.service_ms, m.row_ms) for m in self.models)

    def load(self, model: str, version: str) -> Load:
        found = next((m for m in self.models if m.name == model and m.version == version), None)
        return Load(
            incarnation=self.incarnation,
            seq=self.seq,
            state=self.state,
            wait_ms=self.wait_ms,
            in_flight=found.in_flight if found else 0,
            service_ms=found.service_ms if found else 0.0,
            row_ms=found.row_ms if found else 0.0,
            uplink_bytes=self.uplink_bytes,
            queued=self.queued,
        )


class Load(msgspec.Struct, frozen=True):
    """The load report on a reply, a refusal and a request between nodes (header ``Mesh-Load``): the node's state now,
    seen from one model."""

    incarnation: int
    seq: int
    state: str
    wait_ms: float
    in_flight: int
    service_ms: float
    row_ms: float = 0.0
    uplink_bytes: int = 0
    queued: Queued = ()

    @property
    def work(self) -> Work:
        return Work(self.wait_ms, self.queued)

    @property
    def plausible(self) -> bool:
        """Whether all figures can be true."""
        return _plausible(self) and _bounded(self.in_flight, self.service_ms, self.row_ms)

    def header(self) -> str:
        """``incarnation;seq;state;wait;in flight;service;row;uplink;class:bin,bin,.../class:...``."""
        queued = "/".join([f"{level}:{_BINS[len(bins)] % bins}" for level, bins in self.queued])
        return _HEADER % (
            self.incarnation, self.seq, self.state, self.wait_ms, self.in_flight, self.service_ms, self.row_ms,
            self.uplink_bytes, queued,
        )  # fmt: skip

    @classmethod
    def from_header(cls, text: str) -> Load:
        """Raises ``ProtocolError`` on anything that :meth:`header` did not write."""
        if len(text) > MAX_LOAD_CHARS:
            raise ProtocolError(f"a neighbour sent a load report of {len(text)} characters")
        try:
            incarnation, seq, state, wait_ms, in_flight, service_ms, row_ms, uplink, queued = text.split(";")
            load = cls(
                int(incarnation),
                int(seq),
                state,
                float(wait_ms),
                int(in_flight),
                float(service_ms),
                float(row_ms),
                int(uplink),
                _queued(queued) if queued else (),
            )
        except ValueError:
            raise ProtocolError("a neighbour sent a load report that is not one") from None
        if not load.plausible:
            raise ProtocolError("a neighbour sent a load report whose figures cannot be true")
        return load


def _queued(text: str) -> Queued:
    """Raises ``ValueError``."""
    entries = [entry.partition(":") for entry in text.split("/")]
    return tuple([(int(level), tuple([float(ms) for ms in bins.split(",")])) for level, _, bins in entries])


def _plausible(said: Report | Load) -> bool:
    """What reports and loads both say of a node."""
    if not _bounded(said.wait_ms) or not 0 <= said.uplink_bytes <= MAX_UPLINK_BYTES:
        return False
    return len(said.queued) <= CLASSES and all(
        1 <= level <= CLASSES and len(bins) <= BINS and _bounded(*bins) for level, bins in said.queued
    )


def _bounded(*figures: float) -> bool:
    """NaN is within no bounds."""
    for figure in figures:  # noqa: SIM110 - several times a reply, and this costs half of a generator
        if not 0.0 <= figure <= MAX_FIGURE:
            return False
    return True


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
    if not report.plausible:
        raise ProtocolError("a neighbour sent a report whose figures cannot be true")
    return report
