"""``mesh demo``: play the demonstration and show what happened, live for people, as one document for programs."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table

from mesh import telemetry
from mesh.command import FAILED, Json, console, fail, print_json, run
from mesh.errors import ConfigError
from mesh.lifecycle import Tasks

if TYPE_CHECKING:
    from mesh.demo.phases import Phase
    from mesh.demo.run import Stage

FRAME_S = 0.25


class Screen:
    """What people see meanwhile: the step and the counts so far."""

    def __init__(self) -> None:
        self._step = ""
        self._stage: Stage | None = None
        self._live: Live | None = None

    def said(self, stage: Stage, step: str) -> None:
        self._stage, self._step = stage, step
        if self._live is not None and not console().is_terminal:
            self._live.console.print(step)

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        with Live(console=console(), refresh_per_second=4, transient=True) as live:
            self._live = live
            async with Tasks("screen") as tasks:
                tasks.start(self._frames(live), "frames")
                yield

    async def _frames(self, live: Live) -> None:
        while True:
            phases = self._stage.phases if self._stage is not None else []
            live.update(Group(f"[bold]{self._step}[/]", table(phases)))
            await asyncio.sleep(FRAME_S)


def demo(
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Length of each of the four phases")] = 8.0,
    models: Annotated[Path, typer.Option(help="Repository that 'make models' filled")] = Path("models"),
    json: Json = False,
) -> None:
    """Run the main job on real models: steady load, a burst, a killed node, a bus outage; exit 1 if anything failed."""
    from mesh.demo import phases as counted
    from mesh.demo import run as played

    with fail():
        if not models.is_dir():
            raise ConfigError(f"there is no folder {models}: fetch the models with 'make models'")
        telemetry.setup("error")
        with tempfile.TemporaryDirectory(prefix="mesh-demo-") as run_dir:
            screen = Screen()
            work = played.run(models.resolve(), Path(run_dir), seconds, screen.said)
            found = run(work if json else _with_screen(screen, work))
    if json:
        print_json(counted.document(found))
    else:
        console().print(table(found))
        for phase in found:
            for event in phase.events:
                console().print(f"{phase.name}: {event}", highlight=False)
        console().print("ok: true" if counted.ok(found) else "ok: false")
    if not counted.ok(found):
        raise SystemExit(FAILED)


async def _with_screen(screen: Screen, work: Coroutine[None, None, list[Phase]]) -> list[Phase]:
    async with screen.shown():
        return await work


def table(phases: list[Phase]) -> Table:
    """A row a phase: what was asked, what came back, where it ran."""
    shown = Table("phase", "requests", "failed", "wrong", "p50 ms", "p99 ms", "local", "peer", "cloud", "right answers")
    for phase in phases:
        total = max(sum(phase.routes.values()), 1)
        shares = [f"{100 * phase.routes[route] / total:.0f} %" for route in ("local", "peer", "cloud")]
        checked = ", ".join(f"{name} {count}" for name, count in sorted(phase.right.items()))
        failed = f"[red]{phase.failed}[/]" if phase.failed else "0"
        wrong = f"[red]{phase.wrong}[/]" if phase.wrong else "0"
        quantiles = [_ms(phase.quantile_ms(q)) for q in (0.50, 0.99)]
        shown.add_row(phase.name, str(phase.requests), failed, wrong, *quantiles, *shares, checked)
    return shown


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
