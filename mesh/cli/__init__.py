"""``mesh``: the fleet CLI. This file puts the commands together; each group of them has a module.

Every command takes ``--json`` (one document on stdout) and, where it asks the fleet, ``--url`` (default ``MESH_URL``,
else 127.0.0.1:8000). Not here: what the commands do; running an agent or a router (``edge.cli``, ``cloud.cli``).
"""

from __future__ import annotations

import typer

from mesh.cli import demo, doctor, fleet, infer, up
from mesh.command import Config, Json, Version, check_config
from mesh.settings import MeshSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(no_args_is_help=True, help="Settings.")
app.add_typer(config_app, name="config")

app.command("up")(up.up)
app.command("demo")(demo.demo)
app.command("nodes")(fleet.nodes)
app.command("models")(fleet.models)
app.command("infer")(infer.infer)
app.command("doctor")(doctor.doctor)


@app.callback()
def options(version: Version = False) -> None:
    """Look at a mesh, ask it, or start one on this box."""


@config_app.command("check")
def config_check(config: Config = None, json: Json = False) -> None:
    """Print the effective shared settings and where each comes from; exit 2 if one is wrong."""
    check_config(MeshSettings, config, json)


def main() -> None:
    app()
