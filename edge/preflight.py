"""Whether a model fits before it is loaded, and which others would have to go: the memory preflight.

The box dies of the kernel's out-of-memory killer where a load takes too much, so what is predicted is compared with
what is free. Unified memory is one pool. Pure: values in, a verdict out. Not here: measuring (``footprints``), acting
(``room``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from mesh.messages import Gauges

MIB = 1 << 20
MIN_RESERVE = 512 * MIB
WORKER_BYTES = 96 * MIB
"""A worker process without a model, about 26 MiB of its own, and the tensors of its runs, as small models have them."""
FACTOR = 2.5
"""Memory of a model never loaded before, over its file: weights as they are read and in the layout of the device."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a loaded version holds; ``device`` is memory of the GPU."""

    box: int
    device: int = 0


class Room(NamedTuple):
    """Free bytes; None is unknown, and then nothing is refused for it."""

    box: int | None
    device: int | None
    unified: bool = False


def predict(file_bytes: int, *, on_gpu: bool, own_worker: bool) -> Footprint:
    """For a version that was never measured here."""
    model = int(file_bytes * FACTOR)
    return Footprint((WORKER_BYTES if own_worker else 0) + model, model if on_gpu else 0)


def room(gauges: Gauges, device: int, reserve_bytes: int | None) -> Room:
    """What may be used of the box and of the GPU numbered ``device``; both keep the reserve."""
    gpu = gauges.devices[device] if device < len(gauges.devices) else None
    unified = gpu is not None and gpu.unified_memory
    return Room(
        _free(gauges.memory_used_bytes, gauges.memory_total_bytes, reserve_bytes),
        None if gpu is None or unified else _free(gpu.memory_used_bytes, gpu.memory_total_bytes, reserve_bytes),
        unified,
    )


def _free(used: int | None, total: int | None, reserve_bytes: int | None) -> int | None:
    if used is None or total is None:
        return None
    reserve = max(MIN_RESERVE, total // 10) if reserve_bytes is None else reserve_bytes
    return max(total - used - reserve, 0)


def grown(before: Gauges, after: Gauges, device: int) -> int | None:
    """Bytes that the GPU numbered ``device`` holds more than before; None where that is unknown, or it is not more.

    Where its memory is the box's, it is what the box holds more.
    """
    if device >= min(len(before.devices), len(after.devices)):
        return None
    used, uses = before.devices[device].memory_used_bytes, after.devices[device].memory_used_bytes
    return None if used is None or uses is None or uses <= used else uses - used


def less(free: Room, taken: Sequence[Footprint]) -> Room:
    """What is left when those that are being loaded have what was predicted."""
    box, device = _needs(free, Footprint(sum(t.box for t in taken), sum(t.device for t in taken)))
    return Room(
        None if free.box is None else free.box - box,
        None if free.device is None else free.device - device,
        free.unified,
    )


def missing(need: Footprint, free: Room) -> Footprint:
    """Bytes that are not there; zeros if it fits."""
    box, device = _needs(free, need)
    return Footprint(
        0 if free.box is None else max(box - free.box, 0), 0 if free.device is None else max(device - free.device, 0)
    )


def _needs(free: Room, footprint: Footprint) -> tuple[int, int]:
    """Unified memory is counted once, as the box's."""
    return (footprint.box + footprint.device, 0) if free.unified else (footprint.box, footprint.device)


def refusal(need: Footprint, free: Room) -> str:
    """Why a model that does not fit is not loaded, with the numbers."""
    short, (box, device) = missing(need, free), _needs(free, need)
    if short.box:
        return f"it needs about {_mib(box)} of memory, {_mib(free.box or 0)} are free beyond the reserve"
    return f"it needs about {_mib(device)} of the GPU's memory, {_mib(free.device or 0)} are free beyond the reserve"


def _mib(count: int) -> str:
    return f"{max(count, 0) / MIB:.0f} MiB"


@dataclass(frozen=True)
class Evictable(Generic[T]):
    """A version that could be unloaded: idle, and READY."""

    what: T
    footprint: Footprint
    last_used: float


def victims(short: Footprint, unified: bool, idle: Sequence[Evictable[T]]) -> list[T] | None:
    """The least recently used that together free what is short; None if all of them do not."""
    chosen: list[Evictable[T]] = []
    box, device = short.box, short.device
    for candidate in sorted(idle, key=lambda c: c.last_used):
        if box <= 0 and device <= 0:
            break
        own = candidate.footprint
        helps_box = own.box + own.device if unified else own.box
        if (box > 0 and helps_box > 0) or (device > 0 and own.device > 0):
            chosen.append(candidate)
            box -= helps_box
            device -= own.device
    return [c.what for c in chosen] if box <= 0 and device <= 0 else None
