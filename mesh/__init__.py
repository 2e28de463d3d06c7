"""What every node of the mesh speaks, and the SDK. The names below are the public ones.

They are imported when they are first used: an agent that imports a part of this package does not pay for the SDK. Not
here: devices and runtimes (``hardware``), the agent (``edge``), the cloud router (``cloud``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.client import Client
    from mesh.errors import MeshError
    from mesh.oip.tensor import Tensor
    from mesh.result import Result
    from mesh.sync_client import SyncClient

__all__ = ["Client", "MeshError", "Result", "SyncClient", "Tensor"]

_HOMES = {
    "Client": "mesh.client",
    "MeshError": "mesh.errors",
    "Result": "mesh.result",
    "SyncClient": "mesh.sync_client",
    "Tensor": "mesh.oip.tensor",
}


if not TYPE_CHECKING:  # or checkers believe in every name

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'mesh' has no attribute {name!r}")
        return getattr(importlib.import_module(home), name)
