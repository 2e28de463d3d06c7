"""The engine cache: found again, and rebuilt, never loaded, where it is not what this device wrote (DESIGN D7).

Not here: the cache itself (``engine_cache``).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

from hardware.acceptance.finding import CheckFailed, Found
from hardware.acceptance.place import Place
from hardware.acceptance.subjects import Subject
from hardware.backend import EngineOptions, LoadOptions
from hardware.engine_build import Engine, EngineRequest, build_engine
from hardware.errors import EngineNotBuilt

FOLDER = "damaged"
Damage = Callable[[EngineRequest, Engine], None]


async def hit(place: Place, subject: Subject) -> Found:
    """Every build has a process of its own, and so has every worker: what is found was on disk."""
    first = await _build(place, subject, "found")
    second = await _build(place, subject, "found")
    if first.cached or not second.cached:
        raise CheckFailed("a second build did not find the first one's engine", {"first_s": first.build_s})
    if (second.entry, second.key) != (first.entry, first.key):
        raise CheckFailed("a second build found another engine")
    for _ in range(2):
        async with place.alone(subject) as opened:
            await opened.run()
    other = place.desk.engine_request(subject, EngineOptions("fp32", subject.engine_profiles(2)), "found")
    if (await build_engine(other, lambda _: None, place.desk.build_limits)).key == first.key:
        raise CheckFailed("an engine of other profiles has the same key")
    return Found("found by the next process, and by two workers; other profiles are another engine")


def flip(_: EngineRequest, engine: Engine) -> None:
    plan = Path(engine.entry) / "plan"
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


def truncate(_: EngineRequest, engine: Engine) -> None:
    plan = Path(engine.entry) / "plan"
    plan.write_bytes(plan.read_bytes()[:-1])


def foreign(request: EngineRequest, _: Engine) -> None:
    """As if the cache came from another device."""
    key = Path(request.key_file)
    key.write_bytes(secrets.token_bytes(key.stat().st_size))


DAMAGES: tuple[tuple[str, Damage], ...] = (
    ("one flipped bit", flip),
    ("a truncated plan", truncate),
    ("another device's key", foreign),
)


async def damaged(place: Place, subject: Subject, damage: Damage) -> Found:
    """What is damaged is refused by a worker that is pointed to it, and built anew by the next build."""
    request = place.desk.engine_request(subject, place.engine_options(subject), FOLDER)
    engine = await _build(place, subject, FOLDER)
    await asyncio.to_thread(damage, request, engine)
    try:
        await place.load(subject, _options(place, request, engine))
    except EngineNotBuilt:
        pass
    else:
        raise CheckFailed("it was loaded", advice="do not use this installation: a plan is code")
    again = await _build(place, subject, FOLDER)
    if again.cached or again.key != engine.key:
        raise CheckFailed("it was found in the cache again", advice="do not use this installation: a plan is code")
    opened = await place.load(subject, _options(place, request, again))
    await opened.run()
    await opened.runtime.unload(opened.key)
    return Found("refused when loaded, built anew, and that one runs")


async def _build(place: Place, subject: Subject, folder: str) -> Engine:
    request = place.desk.engine_request(subject, place.engine_options(subject), folder)
    return await build_engine(request, lambda _: None, place.desk.build_limits)


def _options(place: Place, request: EngineRequest, engine: Engine) -> LoadOptions:
    return LoadOptions(
        backend=place.backend, allow_cpu=False, engine=request.options,
        engine_entry=engine.entry, engine_key_file=request.key_file, device=request.device,
    )  # fmt: skip
