"""``mesh-edge``: run the agent, check its configuration. Parses flags, nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from edge.settings import EdgeSettings
from mesh.command import Config, Json, Version, check_config, fail, printed, start
from mesh.lifecycle import stop_on_signals
from mesh.node_id import claim
from mesh.settings import load, process_environ

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
config_app = typer.Typer(no_args_is_help=True, help="Settings.")
app.add_typer(config_app, name="config")

Text = Optional[str]  # noqa: UP045 - typer reads annotations on Python 3.10


@app.callback()
def options(version: Version = False) -> None:
    """Serve the models of this box, alone or in a mesh."""


@app.command()
def run(
    models: Annotated[Optional[Path], typer.Option(help="Model repository: DIR/<model>/<version>/model.onnx")] = None,  # noqa: UP045
    http: Annotated[Text, typer.Option(help="HOST:PORT of the HTTP door; port 0 takes a free one")] = None,
    grpc: Annotated[Text, typer.Option(help="HOST:PORT of the gRPC door; without it there is none")] = None,
    nats: Annotated[Text, typer.Option(help="URL of the bus; without it the agent meshes on the LAN")] = None,
    site: Annotated[Text, typer.Option(help="Site this node stands at")] = None,
    node: Annotated[Text, typer.Option(help="Name of this node in the mesh")] = None,
    mesh: Annotated[Text, typer.Option(help="Mesh id: only nodes of one mesh work together")] = None,
    tier: Annotated[Text, typer.Option(help="edge or cloud")] = None,
    advertise: Annotated[Text, typer.Option(help="HOST:PORT others shall use; 'none' for the bus only")] = None,
    server_name: Annotated[Text, typer.Option(help="Name in the server metadata")] = None,
    config: Config = None,
) -> None:
    """Serve the models of a repository, alone or in a mesh, until SIGTERM."""
    flags: dict[str, Any] = {
        "models.dir": models,
        "http.listen": http,
        "grpc.listen": grpc,
        "nats.url": nats,
        "site.name": site,
        "node.name": node,
        "site.mesh": mesh,
        "node.tier": tier,
        "http.advertise": advertise,
        "http.server_name": server_name,
    }
    with fail():
        settings, _ = load(EdgeSettings, flags, config, process_environ())
        if settings.models.dir is None:
            fail.usage("give the model repository with --models DIR, models.dir in the file, or MESH_MODELS__DIR")
        start(settings.log, lambda: _run(settings))


async def _run(settings: EdgeSettings) -> None:
    from edge.agent import Agent  # the runtime's imports are not for --help

    async with stop_on_signals() as stop:
        with claim(settings.node.state_dir, settings.node.name or None) as identity:
            agent = Agent(settings, identity)
            async with agent.running() as address:
                ready = asyncio.ensure_future(agent.until_ready())
                stopped = asyncio.ensure_future(stop.wait())
                await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    printed(f"ready http://{address}")
                ready.cancel()
                await stopped


@config_app.command("check")
def config_check(config: Config = None, json: Json = False) -> None:
    """Print the effective settings and where each comes from; exit 2 if one is wrong."""
    check_config(EdgeSettings, config, json)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
