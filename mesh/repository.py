"""What a door offers of a model repository: Triton's ``model_repository`` extension as a protocol, and its parameters.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md. Not here: who
implements it (``edge.control``, ``fleet_repository``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from mesh.errors import LoadFailed, PayloadTooLarge

FILE = "file:"
"""Begins the name of a parameter that holds a file in place of the repository's."""


MAX_CONFIG_CHARS = 1 << 20


class IndexEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a model; ``version`` is empty where nothing of the model is loaded."""

    name: str
    version: str = ""
    state: str = ""
    """As Triton names it: "READY", "LOADING", "UNLOADING" or "UNAVAILABLE"."""
    reason: str = ""


class ModelRepository(Protocol):
    """Every call raises ``MeshError``."""

    async def index(self) -> list[IndexEntry]:
        """All that could be loaded, loaded or not."""

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Load a model, or load it again; returns once it serves, raises where it does not.

        ``parameters`` are Triton's, of which ``config`` is taken (:func:`override`).
        """

    async def unload(self, name: str) -> None:
        """Unload a model; returns once it is gone."""


def override(name: str, parameters: Mapping[str, Any] | None) -> str | None:
    """The model configuration (JSON) that stands in for the repository's own until the model is loaded or unloaded
    again; None where none is given. Raises ``LoadFailed`` for every other parameter, or ``PayloadTooLarge``."""
    for parameter in parameters or ():
        if parameter.startswith(FILE):
            raise LoadFailed(
                f"failed to load {name!r}, failed to poll from model repository: a file is not taken with the request "
                f"(parameter {_short(parameter)}); put it into the folder of the model"
            )
        if parameter != "config":
            raise LoadFailed(f"failed to load {name!r}: parameter {_short(parameter)} is not taken, only 'config' is")
    config = (parameters or {}).get("config")
    if config is not None and not isinstance(config, str):
        raise LoadFailed(f"failed to load {name!r}: parameter 'config' must be a text that holds JSON")
    if config is not None and len(config) > MAX_CONFIG_CHARS:
        raise PayloadTooLarge(f"the configuration of {name!r} has {len(config)} characters, over {MAX_CONFIG_CHARS}")
    return config


def load_body(config: str | None) -> bytes:
    """What is sent to another node to have a model loaded there."""
    return b"" if config is None else msgspec.json.encode({"parameters": {"config": config}})


def _short(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
