"""The whole run in its order: the installation, each backend that is there with each model, then what needs only one.

Not here: the checks themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hardware.acceptance import cache, edges, exam, faults, made, soak, speed, subjects, together, versions
from hardware.acceptance.finding import NOT_EVIDENCE, Check, Finding, Found, Skipped, judge
from hardware.acceptance.place import BACKENDS, Desk, Opened, Place, Precision
from hardware.acceptance.reference import Reference
from hardware.acceptance.subjects import Subject

CHECK_S = 300.0
BUILD_S = 4 * 3600.0
"""A large model takes hours on a small Jetson; a build that hangs is ended long before, by its silence."""
PROVIDERS = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
CPU = "onnxruntime-cpu"
PRECISIONS: dict[str, tuple[Precision, ...]] = {"tensorrt": ("fp32", "fp16"), "onnxruntime-tensorrt": ("fp32", "fp16")}


class Say(Protocol):
    """Where everything goes that is found, as soon as it is."""

    def box(self, found: dict[str, Any]) -> None: ...

    def versions(self, found: dict[str, Any]) -> None: ...

    def finding(self, finding: Finding) -> None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    folder: Path
    models: Path | None = None
    seconds: float = 60.0
    backends: tuple[str, ...] = ()
    """Empty is every one that is there."""


async def run(asked: Asked, say: Say) -> None:
    """All of it; nothing that is found out raises."""
    work = _Run(asked, say)
    await work.installation()
    async with Reference(work.desk) as reference:
        models = await work.models(reference)
        for backend in dict.fromkeys((CPU, *(asked.backends or BACKENDS))):  # others are compared with the CPU's speed
            if not work.is_there(backend):
                continue
            for precision in PRECISIONS.get(backend, ("fp32",)):
                async with Place(work.desk, backend, precision, work.name(backend)) as place:
                    await work.place(place, models, reference)


class _Run:
    def __init__(self, asked: Asked, say: Say) -> None:
        self._asked = asked
        self._say = say
        self.desk = Desk(asked.folder, asked.seconds)
        self._versions: dict[str, Any] = {}
        self._cpu_ms: speed.CpuMs = {}
        self._ms: dict[str, float] = {}
        """Milliseconds of the longest run of each model that ran at this place."""

    async def installation(self) -> None:
        box, self._versions = await asyncio.gather(versions.box(), versions.look())
        self._say.box(box)
        self._say.versions(self._versions)
        for name, check in (
            ("python", versions.python),
            ("onnxruntime", versions.onnxruntime),
            ("cuda", versions.cuda),
            ("tensorrt", versions.tensorrt),
        ):
            await self._judge(name, partial(_done, check, self._versions))
        await self._judge("readings", partial(_done, versions.readings, box))

    async def models(self, reference: Reference) -> list[Subject]:
        """Those that ONNX Runtime answers on the CPU; without that nothing can be compared."""
        found: list[Subject] = []
        for name, make in self._sources():

            async def look(make: Callable[[], Subject] = make) -> Found:
                subject = await reference.fitted(await asyncio.to_thread(make))
                await reference.done_with(subject)
                found.append(subject)
                return Found("ONNX Runtime answers on the CPU: others are compared with it")

            self._say.finding(await judge("reference", "", name, look, CHECK_S, reference.kill))
        return found

    def _sources(self) -> list[tuple[str, Callable[[], Subject]]]:
        sources: list[tuple[str, Callable[[], Subject]]] = [
            (model.name, partial(subjects.of_made, self._asked.folder, model)) for model in made.all_models()
        ]
        for path in subjects.in_repository(self._asked.models) if self._asked.models is not None else ():
            folder = path.parent.parent
            sources.append((folder.name, partial(subjects.of_file, folder.name, path, folder / "model.toml")))
        return sources

    def is_there(self, backend: str) -> bool:
        """Whether it is installed; one that was named and is not has failed."""
        asked = backend == CPU or backend in self._asked.backends
        why = missing(backend, self._versions) or ("" if asked else unlikely(backend, self._versions))
        if not why:
            return True
        self._say.finding(Finding("installed", backend, "", "failed" if asked else "skipped", why))
        return False

    def name(self, backend: str) -> str:
        """What a backend really is: a stand-in says so from the start."""
        if backend == "tensorrt":
            return str(self._versions["tensorrt"]["module"])
        return f"{backend}-fake" if backend != CPU and self._versions["onnxruntime"]["simulated"] else backend

    async def place(self, place: Place, models: Sequence[Subject], reference: Reference) -> None:
        try:
            exam.precision(place, self._versions["tensorrt"].get("fp16_by_flag"))
        except Skipped as why:
            self._say.finding(Finding(f"precision {place.precision}", place.name, "", "skipped", str(why)))
            return
        self._ms.clear()
        for number, subject in enumerate(models):
            is_there = await self._exam(place, subject, reference)
            await reference.done_with(subject)
            if number == 0 and not is_there:  # the simplest model of all: no other will do better
                return
        known = {subject.name: subject for subject in models if subject.is_made}
        if place.precision == "fp32" and {"made-chain", "made-classifier"} <= known.keys():
            await self._once(place, known["made-chain"], known["made-classifier"], reference)
            await self._soak(place, models)

    async def _exam(self, place: Place, subject: Subject, reference: Reference) -> bool:
        """Build, load, and whatever can be asked of it then; whether it could be loaded."""
        if place.backend == "tensorrt":
            built = await self._at(place, "build", subject, partial(exam.build, place, subject), BUILD_S)
            if built.state != "ok":
                return False
        held: list[Opened] = []

        async def load() -> Found:
            held.append(await place.load(subject, await place.options(subject)))
            return exam.load(held[0])

        await self._at(place, "load", subject, load, BUILD_S)
        for name, check in (
            ("parity", lambda opened: exam.parity(opened, place, reference)),
            ("repeat", lambda opened: exam.repeat(opened, place)),
            ("speed", lambda opened: speed.by_rows(opened, place, self._cpu_ms)),
        ):
            if held and held[0].runtime.alive:
                finding = await self._at(place, name, subject, partial(check, held[0]))
                if name == "speed" and finding.state == "ok":
                    self._ms[subject.name] = max(int(n) * ms for n, ms in finding.numbers["ms_per_row"].items())
        if held and held[0].runtime.alive:
            await _unload(place, held[0])
        return bool(held)

    async def _once(self, place: Place, chain: Subject, other: Subject, reference: Reference) -> None:
        """What says more of the backend than of the model."""
        integrated = self._versions["cuda"].get("integrated")
        checks: list[tuple[str, Subject, Check]] = []
        if place.backend == "tensorrt":
            checks.append(("cache: found", chain, partial(cache.hit, place, chain)))
            for name, damage in cache.DAMAGES:
                checks.append((f"cache: {name}", chain, partial(cache.damaged, place, chain, damage)))
            checks.append(("profiles", chain, partial(edges.profiles, place, chain, reference)))
        checks += [
            ("refusals", chain, partial(edges.refusals, place, chain, reference)),
            ("concurrency", other, partial(together.instances, place, other)),
            ("two models", chain, partial(together.two_models, place, chain, other)),
            ("killed worker", chain, partial(faults.killed, place, chain, other)),
            ("frozen worker", chain, partial(faults.frozen, place, chain)),
            ("run without end", chain, partial(faults.endless, place, chain)),
            ("no memory", chain, partial(faults.no_memory, place, chain, integrated=integrated)),
            ("no memory to load", chain, partial(faults.no_memory_to_load, place, chain)),
            ("worker's cost", chain, partial(speed.overhead, place, chain)),
        ]
        if place.backend == "tensorrt":
            checks.append(("CUDA graphs", chain, partial(speed.graphs, place, chain)))
        for name, subject, check in checks:
            await self._at(place, name, subject, check)

    async def _soak(self, place: Place, models: Sequence[Subject]) -> None:
        """With the model that is the most work."""
        heaviest = max(models, key=lambda subject: self._ms.get(subject.name, 0.0))
        work = partial(soak.steady, place, heaviest)
        await self._at(place, "soak", heaviest, work, CHECK_S + 2 * self.desk.seconds)

    async def _at(self, place: Place, check: str, subject: Subject, work: Check, limit_s: float = CHECK_S) -> Finding:
        name = f"{check} {place.precision}" if place.backend in PRECISIONS else check
        finding = await judge(name, place.name, subject.name, work, limit_s, place.kill)
        if place.is_simulated:
            finding = replace(finding, advice="; ".join(filter(None, (NOT_EVIDENCE, finding.advice))))
        self._say.finding(finding)
        return finding

    async def _judge(self, check: str, work: Check) -> None:
        self._say.finding(await judge(check, "", "", work, CHECK_S))


async def _done(check: Callable[[dict[str, Any]], Found], found: dict[str, Any]) -> Found:
    return check(found)


async def _unload(place: Place, opened: Opened) -> None:
    async def unload() -> Found:
        await opened.runtime.unload(opened.key)
        return Found("")

    await judge("unload", place.name, opened.subject.name, unload, CHECK_S, place.kill)


def missing(backend: str, found: dict[str, Any]) -> str:
    """Why a backend cannot even be tried; empty if it can."""
    if backend == "tensorrt":
        return str(found["tensorrt"].get("error") or found["cuda"].get("error") or "")
    looked = found["onnxruntime"]
    if "error" in looked:
        return str(looked["error"])
    if PROVIDERS[backend] not in looked["providers"]:
        return f"this onnxruntime was built without {PROVIDERS[backend]}"
    return ""


def unlikely(backend: str, found: dict[str, Any]) -> str:
    """Why a backend is only tried when it is named: its provider comes with every ``onnxruntime-gpu``."""
    if backend != "onnxruntime-tensorrt":
        return ""
    if "error" in found["tensorrt"]:
        return str(found["tensorrt"]["error"])
    wanted, there = found["onnxruntime"]["links_tensorrt"], str(found["tensorrt"]["version"])
    if wanted is not None and there.split(".")[0] != str(wanted):
        return f"this onnxruntime links TensorRT {wanted}, installed is {there}"
    return ""
