"""``mesh-cloud``: run the cloud router, check its configuration. Parses flags, nothing else."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from cloud.settings import CloudSettings
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
    """Route requests to the nodes of a mesh."""


@app.command()
def run(
    http: Annotated[Text, typer.Option(help="HOST:PORT of the HTTP door; port 0 takes a free one")] = None,
    grpc: Annotated[Text, typer.Option(help="HOST:PORT of the gRPC door; without it there is none")] = None,
    nats: Annotated[Text, typer.Option(help="URL of the bus")] = None,
    mesh: Annotated[Text, typer.Option(help="Mesh id: only nodes of one mesh work together")] = None,
    node: Annotated[Text, typer.Option(help="Name of this replica in the mesh")] = None,
    advertise: Annotated[Text, typer.Option(help="HOST:PORT others shall use; 'none' hides the door")] = None,
    server_name: Annotated[Text, typer.Option(help="Name in the server metadata")] = None,
    config: Config = None,
) -> None:
    """Route requests to every node of the mesh until SIGTERM."""
    flags = {
        "http.listen": http,
        "grpc.listen": grpc,
        "nats.url": nats,
        "site.mesh": mesh,
        "node.name": node,
        "http.advertise": advertise,
        "http.server_name": server_name,
    }
    with fail():
        settings, _ = load(CloudSettings, flags, config, process_environ())
        start(settings.log, lambda: _run(settings))


async def _run(settings: CloudSettings) -> None:
    from cloud.app import App

    async with stop_on_signals() as stop:
        with claim(settings.node.state_dir, settings.node.name or None) as identity:
            async with App(settings, identity).running() as address:
                printed(f"ready http://{address}")
                await stop.wait()


@config_app.command("check")
def config_check(config: Config = None, json: Json = False) -> None:
    """Print the effective settings and where each comes from; exit 2 if one is wrong."""
    check_config(CloudSettings, config, json)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
