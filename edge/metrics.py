"""The metrics that an agent has beside those of every node: its queue, its runs, its workers, backends and engines.

Not here: counting (``tally``), what is reported to others too (``mesh.node_metrics``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edge.instances import Instances
from edge.sequences import Sequences
from edge.tally import Tally
from mesh.metrics import Family, Measured

_VERSIONED = ("model", "version")

INFERENCES = Family("mesh_inferences_total", "counter", "Inferences answered on this node.", _VERSIONED)
RUNS = Family(
    "mesh_runs_total",
    "counter",
    "Runs of a model, each for one inference or a batch of them. outcome: ok or failed.",
    (*_VERSIONED, "outcome"),
)
ROWS = Family("mesh_run_rows", "histogram", "Rows of a run: how well requests are batched.", _VERSIONED)
RUN = Family("mesh_run_seconds_total", "counter", "Time of the runs that succeeded, all together.", _VERSIONED)
QUEUED = Family("mesh_queue_seconds", "histogram", "From admission to the begin of the run; only answers.", _VERSIONED)
WAITING = Family("mesh_queue_requests", "gauge", "Inferences that wait for a run.", _VERSIONED)
REFUSED = Family(
    "mesh_refused_total",
    "counter",
    "Inferences refused at once. reason: queue_full, or late for those that would have missed their deadline.",
    (*_VERSIONED, "reason"),
)
DROPPED = Family(
    "mesh_dropped_total", "counter", "Inferences given up in the queue so that others are in time.", _VERSIONED
)
EXPIRED = Family(
    "mesh_expired_total", "counter", "Inferences whose deadline passed. where: queue or run.", (*_VERSIONED, "where")
)
DEATHS = Family(
    "mesh_worker_deaths_total", "counter", "Ends of its worker that a version caused, or may have caused.", _VERSIONED
)
QUARANTINES = Family("mesh_quarantines_total", "counter", "How often a version was quarantined.", _VERSIONED)
DEGRADED = Family(
    "mesh_model_degraded", "gauge", "1 while it is READY on another backend than the one asked for.", _VERSIONED
)
FAILURES = Family(
    "mesh_backend_failures_total",
    "counter",
    "Loads in which a backend of a version's chain could not be had, so that the next was tried.",
    (*_VERSIONED, "backend"),
)
BUILDS = Family(
    "mesh_engine_builds_total",
    "counter",
    "Engine builds that ended. outcome: built, cached, failed or cancelled.",
    (*_VERSIONED, "outcome"),
)
BUILD = Family("mesh_engine_build_seconds", "gauge", "What the last build of an engine took.", _VERSIONED)
STATES = Family("mesh_sequence_states", "gauge", "Sequences whose state this node holds.")
STATE_BYTES = Family("mesh_sequence_state_bytes", "gauge", "States and last answers that it keeps for them.")

FAMILIES = (
    *(INFERENCES, RUNS, ROWS, RUN, QUEUED, WAITING, REFUSED, DROPPED, EXPIRED),
    *(DEATHS, QUARANTINES, DEGRADED, FAILURES, BUILDS, BUILD),
    *(STATES, STATE_BYTES),
)


def agent_metrics(instances: Instances, sequences: Sequences | None = None) -> Iterator[Measured]:
    """All of them as of now; call it on the agent's loop."""
    tallies = instances.tallies
    yield INFERENCES, {of: tally.queue_seconds.count for of, tally in tallies.items()}
    yield RUNS, {(*of, outcome): runs for of, tally in tallies.items() for outcome, runs in _runs(tally)}
    yield ROWS, {of: tally.run_rows for of, tally in tallies.items()}
    yield RUN, {of: tally.run_seconds for of, tally in tallies.items()}
    yield QUEUED, {of: tally.queue_seconds for of, tally in tallies.items()}
    yield WAITING, _waiting(instances)
    yield REFUSED, {(*of, reason): count for of, tally in tallies.items() for reason, count in _refused(tally)}
    yield DROPPED, {of: tally.dropped for of, tally in tallies.items()}
    yield EXPIRED, {(*of, where): count for of, tally in tallies.items() for where, count in _expired(tally)}
    yield DEATHS, {of: tally.worker_deaths for of, tally in tallies.items()}
    yield QUARANTINES, {of: tally.quarantines for of, tally in tallies.items()}
    yield DEGRADED, _degraded(instances)
    yield (
        FAILURES,
        {(*of, backend): count for of, tally in tallies.items() for backend, count in tally.backend_failures.items()},
    )
    yield BUILDS, instances.engines.builds
    yield BUILD, instances.engines.build_s
    if sequences is not None:
        yield STATES, {(): float(len(sequences))}
        yield STATE_BYTES, {(): float(sequences.nbytes)}


def _runs(tally: Tally) -> tuple[tuple[str, int], ...]:
    return ("ok", tally.run_rows.count), ("failed", tally.runs_failed)


def _refused(tally: Tally) -> tuple[tuple[str, int], ...]:
    return ("queue_full", tally.queue_full), ("late", tally.late)


def _expired(tally: Tally) -> tuple[tuple[str, int], ...]:
    return ("queue", tally.expired_queued), ("run", tally.expired_running)


def _waiting(instances: Instances) -> Counter[tuple[str, str]]:
    lanes = instances.executor.forecast.queue.lanes.values()
    by_tally = Counter({id(tally): 0 for tally in instances.tallies.values()})
    for lane in lanes:
        by_tally[id(lane.served.tally)] += sum(1 for _ in lane)
    return Counter({of: by_tally[id(tally)] for of, tally in instances.tallies.items()})


def _degraded(instances: Instances) -> dict[tuple[str, str], bool]:
    found: dict[tuple[str, str], bool] = {}
    for instance in instances.all():
        if instance.state == "READY":
            of = instance.identity.name, instance.identity.version
            found[of] = found.get(of, False) or instance.degraded
    return found
