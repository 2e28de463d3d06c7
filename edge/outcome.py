"""What the end of a run means to each request it was to answer. Not here: anything about the device (``executor``)."""

from __future__ import annotations

from edge import batch
from edge.hardware_errors import translate
from edge.served import Answer, Item, Run
from hardware.backend import RawTensor
from hardware.errors import DeviceFault, HardwareError, WorkerDied
from mesh.errors import DeadlineExceeded, MeshError


def succeeded(answer: Answer | None) -> bool:
    return answer is not None and answer.done() and not answer.cancelled() and answer.exception() is None


def at_once(run: Run) -> list[RawTensor]:
    """The answer of a run of one request that is done; raises its error, translated."""
    error = run.future.exception()
    if error is not None:
        raise _told(error)
    (item,) = run.items
    if item.deadline.expired:
        item.served.tally.expired(queued=False)
        raise DeadlineExceeded("the deadline passed while it ran")
    return run.future.result()


def pass_on(run: Run) -> list[Item]:
    """Give each request its answer or the error; returns those to run again, alone.

    A run of several that failed says nothing of each: one of them may have been the fault. A runtime that died, or
    whose device did, is another matter: whether they ran is unknown, and elsewhere is better than here.
    """
    waiting = [item for item in run.items if not item.future.done()]
    if run.future.cancelled():
        for item in waiting:
            item.future.cancel()
        return []
    error = run.future.exception()
    if error is None:
        try:
            answers = _answers(run)
        except HardwareError as wrong:
            error = wrong
        else:
            for item, answer in zip(run.items, answers, strict=True):
                if not item.future.done():
                    item.future.set_result(answer)
            return []
    if len(run.items) > 1 and isinstance(error, HardwareError) and not isinstance(error, (WorkerDied, DeviceFault)):
        return waiting
    for item in waiting:
        item.future.set_exception(_told(error))
    return []


def _answers(run: Run) -> list[list[RawTensor]]:
    outputs = run.future.result()
    return [outputs] if len(run.items) == 1 else batch.split(outputs, [item.rows for item in run.items])


def _told(error: BaseException) -> Exception:
    if isinstance(error, HardwareError):
        return translate(error)
    return error if isinstance(error, MeshError) else RuntimeError(repr(error))
