"""The door that a command asks: ``--url``, ``MESH_URL``, or this box. Plain GETs; inference goes through the SDK."""

from __future__ import annotations

import os
from typing import Annotated, Any

import msgspec
import typer

from mesh.client import door_address
from mesh.command import run
from mesh.deadline import Deadline
from mesh.errors import NodeUnreachable, ProtocolError
from mesh.hop_http import HttpClient

DEFAULT = "http://127.0.0.1:8000"
TIMEOUT_MS = 5_000.0
HINT = "is an agent or a router running there? --url or MESH_URL names another door"

Url = Annotated[str, typer.Option("--url", help="Door to ask; default MESH_URL, else this box's 127.0.0.1:8000")]


def url_or_default(url: str) -> str:
    return url or os.environ.get("MESH_URL", "").split(",")[0] or DEFAULT


def get(url: str, path: str) -> Any:
    """The JSON document at ``path`` of the door. Raises a ``MeshError`` that says which door failed."""
    return run(_get(door_address(url_or_default(url)), path))


async def _get(address: str, path: str) -> Any:
    async with HttpClient("mesh-cli") as http:
        try:
            body = await http.get_json(address, path, Deadline.after_ms(TIMEOUT_MS))
        except NodeUnreachable as error:
            raise NodeUnreachable(f"{error.text}; {HINT}") from None
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise ProtocolError(f"the door at {address} does not speak the mesh's protocol") from None
