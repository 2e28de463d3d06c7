"""Steady load for a while: does anything grow, get hot, slow down, or give wrong answers late.

Not here: the readings (``gauges``).
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hardware.acceptance.finding import CheckFailed, Found, Numbers
from hardware.acceptance.place import Opened, Place
from hardware.acceptance.subjects import Subject
from hardware.acceptance.together import Checked, all_of
from hardware.gauges import Gauges
from hardware.nvml import Nvml
from hardware.readings import DeviceReadings, Readings

MIB = 1024**2
MOST_GROWTH = 64 * MIB
"""Growth of a worker from the second quarter of the soak to the last that is no warming up."""
SLOPE_S = 10.0
"""A slope over less says nothing."""
PARTS = 12
SAMPLES = 20
"""At the least, however short it is."""
CALLERS = 2
"""So that the device does not wait for an answer to be looked at."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    runs: int
    worker_bytes: int | None
    readings: Readings


async def steady(place: Place, subject: Subject) -> Found:
    """All answers are compared; memory, heat and energy are read about once a second."""
    seconds = place.desk.seconds
    async with place.alone(subject, instances=CALLERS) as opened:
        checked = Checked(place, opened)
        await checked.learn()
        samples = await _sampled(opened, checked, seconds)
    numbers = {"runs": checked.runs, "seconds": seconds, **_memory(samples), **_device(samples)}
    _judge(samples, numbers)
    return Found(_said(numbers), numbers)


async def _sampled(opened: Opened, checked: Checked, seconds: float) -> list[Sample]:
    loop, samples = asyncio.get_running_loop(), []
    until = time.monotonic() + seconds
    load = asyncio.ensure_future(all_of([_load(checked, caller, until) for caller in range(CALLERS)]))
    try:
        with ThreadPoolExecutor(1) as thread:  # the gauges' own thread, always the same one
            gauges = await loop.run_in_executor(thread, lambda: Gauges(nvml=Nvml()))
            while not load.done():
                readings = await loop.run_in_executor(thread, gauges.read)
                samples.append(Sample(readings.at_s, checked.runs, opened.runtime.resident_bytes(), readings))
                await asyncio.wait({load}, timeout=min(1.0, seconds / SAMPLES))
        load.result()
    finally:
        load.cancel()
    return samples


async def _load(checked: Checked, caller: int, until_s: float) -> None:
    await checked.run(caller, sys.maxsize, until_s)
    if checked.runs == 0:
        raise CheckFailed("not one run ended in the time")


def _memory(samples: Sequence[Sample]) -> Numbers:
    worker = [(s.at_s, s.worker_bytes) for s in samples]
    device = [(s.at_s, s.readings.devices[0].memory_used_bytes) for s in samples if s.readings.devices]
    return {
        "worker_mib_per_min": slope_mib_per_min(worker),
        "device_mib_per_min": slope_mib_per_min(device),
        "worker_growth_bytes": growth([memory for _, memory in worker if memory is not None]),
    }


def _device(samples: Sequence[Sample]) -> Numbers:
    """Of the first GPU, or of the box where there is none; None is unknown, with the reason."""
    first, last = samples[0], samples[-1]
    devices = [(s.readings.devices or (s.readings.processor,))[0] for s in samples]
    found = [device for device in devices if device is not None]
    numbers: Numbers = {
        name: _range([getattr(device, name) for device in found])
        for name in ("temperature_c", "power_w", "clock_mhz", "utilization_percent")
    }
    numbers |= {"cpu_percent": _range([s.readings.cpu_percent for s in samples])}
    energy, events = _gained(found, "energy_j"), _gained(found, "throttle_events")
    runs = last.runs - first.runs
    numbers |= {
        "throttle_events": events,
        "throttled_by": sorted({why for device in found for why in device.throttled or ()}),
        "j_per_run": energy / runs if energy is not None and runs else None,
        "unknown": dict(found[-1].unknown) if found else {},
    }
    return numbers


def _gained(found: Sequence[DeviceReadings], name: str) -> Any:
    """How far a counter rose; the first reading has none where it is the difference of two."""
    if not found or getattr(found[-1], name) is None:
        return None
    return getattr(found[-1], name) - (getattr(found[0], name) or 0)


def _range(found: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in found if value is not None]
    return {"min": min(known), "median": statistics.median(known), "max": max(known)} if known else None


def slope_mib_per_min(points: Sequence[tuple[float, int | None]]) -> float | None:
    """Of the lowest values of a dozen parts, for runs take memory and give it back; the first quarter warms up."""
    known = [(at_s, memory) for at_s, memory in points if memory is not None]
    known = known[len(known) // 4 :]
    if len(known) < PARTS or known[-1][0] - known[0][0] < SLOPE_S:
        return None
    bounds = [len(known) * part // PARTS for part in range(PARTS + 1)]
    lowest = [min(known[a:b], key=lambda point: point[1]) for a, b in itertools.pairwise(bounds)]
    return statistics.linear_regression(*zip(*lowest, strict=True)).slope * 60 / MIB


def growth(memory: Sequence[int]) -> int | None:
    """From the second quarter to the last, of the middle values of each."""
    quarter = len(memory) // 4
    if quarter < 1:
        return None
    return int(statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter]))


def _judge(samples: Sequence[Sample], numbers: Numbers) -> None:
    grown = numbers["worker_growth_bytes"]
    if grown is not None and grown > MOST_GROWTH:
        raise CheckFailed(f"the worker grew by {grown / MIB:.0f} MiB under steady load", numbers, "send us this report")


def _said(numbers: Numbers) -> str:
    said = [f"{numbers['runs']} right answers in {numbers['seconds']:g} s"]
    for name, unit in (("worker_mib_per_min", "MiB/min"), ("device_mib_per_min", "MiB/min"), ("j_per_run", "J a run")):
        if numbers[name] is not None:
            said.append(f"{name.split('_')[0]} {numbers[name]:+.2f} {unit}".replace("j +", ""))
    for name, unit in (("temperature_c", "°C"), ("power_w", "W"), ("clock_mhz", "MHz")):
        if numbers[name] is not None:
            said.append(f"{numbers[name]['min']:.0f} to {numbers[name]['max']:.0f} {unit}")
    events = numbers["throttle_events"]
    said.append("throttling unknown" if events is None else f"{events} throttle events")
    return ", ".join(said)
