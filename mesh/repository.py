"""What a door offers of a node's model repository: Triton's ``model_repository`` extension as a protocol. Nothing else.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

from typing import Protocol

import msgspec


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

    async def load(self, name: str) -> None:
        """Load a model, or load it again; returns once it serves, raises where it does not."""

    async def unload(self, name: str) -> None:
        """Unload a model; returns once it is gone."""
