"""Who is in the mesh, in what state, holding what: a table that reports go into and node views come out of.

Reports arrive by several ways (bus, LAN, replies), doubled and out of order; the table ends up the same. Liveness is
judged on the receiver's clock: suspect one ttl after a node was last heard, lost after three, forgotten ten minutes
later, gone at once on a goodbye. Pure: ``now`` (seconds of a monotonic clock) is an argument everywhere. Not here: the
loop that feeds the table and sleeps until ``next_expiry``, who is trusted to report, choosing a node (``balancer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

from msgspec.structs import replace

from mesh.holders import Holders
from mesh.messages import Load, ModelLoad, Report
from mesh.values import ModelIdentity, NodeState

MAX_TTL_MS = 60_000
"""Longest ttl that is believed, so that no report makes a node immortal."""

_GONE: frozenset[NodeState] = frozenset(("lost", "left"))


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as the table sees it now.

    ``report`` is its last report, with newer figures from loads merged in. ``heard_at``, ``since`` (when it entered
    ``state``) and ``figures_at`` (when the figures of the whole node were heard: it may have been heard since, by what
    was older and came late) are seconds of the receiver's monotonic clock.
    """

    report: Report
    state: NodeState
    heard_at: float
    since: float
    figures_at: float

    @property
    def node(self) -> str:
        return self.report.node

    @property
    def models(self) -> tuple[ModelLoad, ...]:
        return self.report.models

    def model(self, identity: ModelIdentity) -> ModelLoad | None:
        """The load of exactly this model (name, version and digest), or None if the node does not hold it."""
        for load in self.report.models:
            if load.name == identity.name and load.version == identity.version and load.digest == identity.digest:
                return load
        return None


@dataclass(frozen=True, slots=True)
class Change:
    """A node went from one state to another; ``old`` is None for a node never seen before."""

    node: str
    old: NodeState | None
    new: NodeState


@dataclass(slots=True)
class _Entry:
    view: NodeView
    heard_seq: int
    """Highest sequence number of this incarnation, from reports and loads."""
    due: float = inf
    """When silence, or ``keep_s``, changes its state next."""
    doubted: bool = False
    """Someone could not reach it; stays until a sequence number above ``heard_seq`` arrives."""
    latest: Load | None = None
    latest_at: float = 0.0
    loads: dict[tuple[str, str], Load] = field(default_factory=dict)
    """Newest load per (model, version) that is not older than the report."""
    rival: tuple[int, int] | None = None
    """Highest (incarnation, seq) seen below the current incarnation."""
    conflicts: int = 0

    def state(self, report: Report) -> NodeState:
        """What the node says of itself, unless it is doubted."""
        if report.state == "left":
            return "left"
        if self.doubted:
            return "suspect"
        return _declared(report.state if self.latest is None else self.latest.state)

    def restart(self, report: Report) -> None:
        """A later start of the node: nothing learned about the earlier one holds any more."""
        self.rival = (self.view.report.incarnation, self.heard_seq)
        self.heard_seq = report.seq
        self.doubted = False
        self.latest = None
        self.loads.clear()

    def note_rival(self, report: Report) -> None:
        """Count a report of an earlier start that goes on reporting: two processes use one node name."""
        key = (report.incarnation, report.seq)
        if report.state == "left" or (self.rival is not None and key <= self.rival):
            return
        if self.rival is not None and self.rival[0] == report.incarnation:
            self.conflicts += 1
        self.rival = key

    def hear(self, seq: int) -> None:
        if seq > self.heard_seq:
            self.heard_seq = seq
            self.doubted = False

    def merge_loads(self, report: Report) -> Report:
        """The report with the figures of loads that are not older than it; older ones are dropped."""
        latest = self.latest
        if latest is not None and latest.seq < report.seq:
            latest = self.latest = None
        if latest is None:  # none is newer than the latest
            self.loads.clear()
            return report
        self.loads = {key: load for key, load in self.loads.items() if load.seq >= report.seq}
        models = tuple([_with_load(m, self.loads.get((m.name, m.version))) for m in report.models])
        return replace(
            report, wait_ms=latest.wait_ms, queued=latest.queued,
            uplink_bytes=latest.uplink_bytes, models=models,
        )  # fmt: skip


class Membership:
    """The table. Reports of one node are ordered by (incarnation, goodbye, seq); the highest wins, equals are ignored.

    ``suspect_after`` and ``lost_after`` count ttls of the node's own report; ``keep_s`` is how many seconds a lost or
    left node stays visible.
    """

    def __init__(self, *, suspect_after: float = 1.0, lost_after: float = 3.0, keep_s: float = 600.0) -> None:
        self._suspect_after = suspect_after
        self._lost_after = lost_after
        self._keep_s = keep_s
        self._entries: dict[str, _Entry] = {}
        self._holders = Holders()
        self.forgotten: list[str] = []
        """Nodes that the last :meth:`expire` forgot."""

    def apply(self, report: Report, now: float) -> Change | None:
        """Take in a report; the state "left" in it is the goodbye, final for its incarnation.

        The LAN form of a report lacks ``hop_key`` (and may lack ``nats``): what is known of the same incarnation is
        kept. A report of an earlier incarnation changes nothing, but see :attr:`conflicts`.
        """
        entry = self._entries.get(report.node)
        if entry is None:
            entry = self._entries[report.node] = _Entry(NodeView(report, "starting", now, now, now), report.seq)
            self._show(entry, report, entry.state(report), now, now)
            return Change(report.node, None, entry.view.state)
        known = entry.view.report
        if report.incarnation < known.incarnation:
            entry.note_rival(report)
            return None
        if report.incarnation > known.incarnation:
            entry.restart(report)
        elif _rank(report) <= _rank(known):
            view = entry.view
            entry.view = NodeView(_filled(known, report), view.state, view.heard_at, view.since, view.figures_at)
            self._holders.show(entry.view, gone=view.state in _GONE)
            return None
        else:
            entry.hear(report.seq)
            report = entry.merge_loads(_filled(report, known))
        return self._show(entry, report, entry.state(report), now, now)

    def observe(self, node: str, load: Load, model: ModelIdentity | None, now: float) -> Change | None:
        """Take in the load that rode on a reply, a refusal or a request of ``node`` about ``model``.

        It counts as hearing the node unless it is older than the report at hand. Loads of another incarnation, of a
        node that said goodbye, and figures that cannot be true are ignored.
        """
        entry = self._entries.get(node)
        if entry is None or not load.plausible:
            return None
        report = entry.view.report
        if load.incarnation != report.incarnation or load.seq < report.seq or report.state == "left":
            return None
        entry.hear(load.seq)
        if entry.latest is None or load.seq >= entry.latest.seq:
            entry.latest, entry.latest_at = load, now
        if model is not None:
            key = (model.name, model.version)
            if key not in entry.loads or load.seq >= entry.loads[key].seq:
                entry.loads[key] = load
        return self._show(entry, entry.merge_loads(report), entry.state(report), now, now)

    def suspect(self, node: str, now: float) -> Change | None:
        """Doubt a node that refused a connection or whose subject nobody answers, until it is heard again."""
        entry = self._entries.get(node)
        if entry is None or entry.view.state in _GONE:
            return None
        entry.doubted = True
        return self._show(entry, entry.view.report, "suspect", entry.view.heard_at, now)

    def expire(self, now: float) -> list[Change]:
        """Move silent nodes to suspect or lost, and forget those gone for ``keep_s`` seconds."""
        changes: list[Change] = []
        self.forgotten = []
        for node, entry in list(self._entries.items()):
            if entry.due > now:
                continue
            view = entry.view
            if view.state in _GONE:
                del self._entries[node]
                self.forgotten.append(node)
                continue
            lost = _silent_at(view, self._lost_after) <= now
            change = self._show(entry, view.report, "lost" if lost else "suspect", view.heard_at, now)
            if change is not None:
                changes.append(change)
        return changes

    def next_expiry(self) -> float | None:
        """When :meth:`expire` next has something to do, or None for an empty table; later reports may postpone it."""
        return min([entry.due for entry in self._entries.values()], default=None)

    def nodes(self) -> Iterable[NodeView]:
        """Every node of the table, lost and left ones too."""
        return [entry.view for entry in self._entries.values()]

    def get(self, node: str) -> NodeView | None:
        entry = self._entries.get(node)
        return entry.view if entry is not None else None

    def holders(self, model: str, *, draining: bool = False) -> Iterator[NodeView]:
        """Starting, ready and suspect nodes that list any version of ``model``, in whatever state it is there.

        ``draining`` adds the nodes that only finish what they have, to tell "not now" from "not found".
        """
        return self._holders.of(model, draining=draining)

    def edition(self, model: str) -> int:
        """The same as long as :meth:`holders` are the same nodes, with the same versions and bytes READY."""
        return self._holders.edition(model)

    @property
    def conflicts(self) -> dict[str, int]:
        """Reports per node name from an earlier incarnation that goes on beside the later one.

        A restart may leave one straggler; a number that grows means that two processes use the same name.
        """
        return {node: entry.conflicts for node, entry in self._entries.items() if entry.conflicts}

    def _show(self, entry: _Entry, report: Report, state: NodeState, heard_at: float, now: float) -> Change | None:
        """Replace the view of an entry, and all that follows from it."""
        old = entry.view
        same = state == old.state and report.incarnation == old.report.incarnation
        figures_at = heard_at if entry.latest is None else entry.latest_at
        view = entry.view = NodeView(report, state, heard_at, old.since if same else now, figures_at)
        if state in _GONE:
            entry.due = view.since + self._keep_s
        else:
            entry.due = _silent_at(view, self._lost_after if state == "suspect" else self._suspect_after)
        self._holders.show(view, gone=state in _GONE)
        return Change(report.node, old.state, state) if state != old.state else None


def _silent_at(view: NodeView, ttls: float) -> float:
    return view.heard_at + ttls * min(max(view.report.ttl_ms, 1), MAX_TTL_MS) / 1e3


def _rank(report: Report) -> tuple[bool, int]:
    return report.state == "left", report.seq


def _declared(state: str) -> NodeState:
    """A state this version does not know, or that only a receiver may give, is taken as "draining": send nothing."""
    return "starting" if state == "starting" else "ready" if state == "ready" else "draining"


def _filled(report: Report, other: Report) -> Report:
    """``report``, with what only the bus form of its incarnation carries taken from ``other`` where it is empty."""
    if (report.hop_key or not other.hop_key) and (report.nats or not other.nats):
        return report
    return replace(report, hop_key=report.hop_key or other.hop_key, nats=report.nats or other.nats)


def _with_load(model: ModelLoad, load: Load | None) -> ModelLoad:
    """A time of 0 in a load is unknown: the node does not hold the model any more."""
    if load is None:
        return model
    service_ms, row_ms = load.service_ms or model.service_ms, load.row_ms or model.row_ms
    return replace(model, in_flight=load.in_flight, service_ms=service_ms, row_ms=row_ms)
