"""What was counted of a version, as Triton's ``statistics`` extension says it. Not here: counting (``tally``)."""

from __future__ import annotations

from edge.instance import Instance
from edge.preflight import Footprint
from edge.tally import Tally
from mesh.oip.statistics import BatchStatistics, Duration, InferStatistics, MemoryUsage, ModelStatistics


def statistics_of(instance: Instance, device: int) -> ModelStatistics:
    """Since the agent started, whatever was loaded meanwhile. ``device`` numbers the GPU that models are loaded on.

    Requests are those of callers; runs, rows and their times count the watchdog's inferences too.
    """
    identity, tally = instance.identity, instance.served.tally
    return ModelStatistics(
        identity.name,
        identity.version,
        tally.last_answer_ms,
        int(tally.run_rows.sum),
        tally.run_rows.count,
        _requests(tally),
        tuple(
            BatchStatistics(rows, compute_infer=_spent(int(runs), seconds))
            for rows, (runs, seconds) in sorted(tally.runs_by_rows.items())
        ),
        _memory(instance.footprint if instance.state == "READY" else None, device),
    )


def _requests(tally: Tally) -> InferStatistics:
    """Tensors are handed over inside the run, so its time is not told apart."""
    queued = tally.queue_seconds
    return InferStatistics(
        success=_spent(tally.answered, tally.answered_seconds),
        fail=_spent(tally.failed, tally.failed_seconds),
        queue=_spent(queued.count, queued.sum),
        compute_infer=_spent(queued.count, tally.waited_seconds),
    )


def _spent(count: int, seconds: float) -> Duration:
    return Duration(count, round(seconds * 1e9))


def _memory(footprint: Footprint | None, device: int) -> tuple[MemoryUsage, ...]:
    if footprint is None:
        return ()
    box = MemoryUsage("CPU", 0, footprint.box)
    return (box, MemoryUsage("GPU", device, footprint.device)) if footprint.device else (box,)
