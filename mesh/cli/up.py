"""``mesh up``: a whole mesh on this box, for trying things out."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Annotated, Optional

import typer

from mesh import telemetry
from mesh.addresses import parse
from mesh.cluster import Child, Cluster
from mesh.command import Json, fail, print_json, printed, run
from mesh.errors import ConfigError
from mesh.lifecycle import Tasks, stop_on_signals


def up(
    agents: Annotated[int, typer.Option(min=1, max=64, help="Agents, on the ports after the router's")] = 2,
    models: Annotated[Optional[Path], typer.Option(help="Model repository; default ./models")] = None,  # noqa: UP045
    http: Annotated[int, typer.Option(min=0, max=65535, help="Port of the router; 0 takes free ones")] = 8000,
    mqtt: Annotated[str, typer.Option(help="HOST:PORT for MQTT 3.1.1 clients; without it there is none")] = "",
    json: Json = False,
) -> None:
    """Start a bus, a router and agents; print one line when all models are READY; Ctrl-C stops all."""
    with fail():
        folder = models or Path("models")
        if not folder.is_dir():
            raise ConfigError(
                f"there is no model repository {folder}: give one with --models DIR, or run 'make models'"
            )
        telemetry.setup("warning")
        if mqtt:
            parse(mqtt)
        run(_up(agents, folder.resolve(), http, mqtt, json))


async def _up(agents: int, models: Path, port: int, mqtt: str, as_json: bool) -> None:
    async with stop_on_signals() as stop:
        with tempfile.TemporaryDirectory(prefix="mesh-up-") as run_dir:
            threads = max(1, (os.cpu_count() or 1) // agents)
            environ = {"MESH_MODELS__ISOLATION": "device", "MESH_MODELS__THREADS": str(threads)}
            async with Cluster(Path(run_dir), agents=environ, mqtt=mqtt) as cluster:
                router = await cluster.router(listen=f"127.0.0.1:{port}")
                for number in range(1, agents + 1):
                    listen = f"127.0.0.1:{port + number if port else 0}"
                    await cluster.agent(f"agent-{number}", models, listen=listen)
                async with Tasks("up") as tasks:
                    starting = tasks.start(_all_ready(cluster), "start")
                    stopping = tasks.start(_set(stop), "stop")
                    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
                    if starting.done():
                        await starting
                        _say(cluster, router, as_json)
                        for child in cluster.children:
                            tasks.start(_say_end(child), child.name)
                        await stopping


def _say(cluster: Cluster, router: Child, as_json: bool) -> None:
    mqtt, password = cluster.bus.mqtt, cluster.bus.token
    if as_json:
        agents = [child.url for child in cluster.children if child is not router]
        devices = {"mqtt": mqtt, "mqtt_password": password} if mqtt else {}
        print_json({"router": router.url, "agents": agents} | devices)
        return
    printed(f"ready {router.url}")
    if mqtt:
        typer.echo(f"MQTT at {mqtt}: any user, password {password}", err=True)


async def _all_ready(cluster: Cluster) -> None:
    router, *agents = cluster.children
    await asyncio.gather(*(child.until_ready() for child in cluster.children))
    await cluster.settled(router, [agent.name for agent in agents])


async def _set(stop: asyncio.Event) -> None:
    await stop.wait()


async def _say_end(child: Child) -> None:
    """A process that ends by itself is said; the others go on."""
    await child.wait()
    typer.echo(f"{child.name} ended: {child.last_words()}", err=True)
