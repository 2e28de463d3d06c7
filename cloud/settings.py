"""Settings of the cloud router: the shared groups (``mesh.settings``) with other defaults, no group of its own."""

from __future__ import annotations

from mesh.settings import MeshSettings, NodeSettings
from mesh.values import Tier


class RouterNodeSettings(NodeSettings):
    tier: Tier = "cloud"


class CloudSettings(MeshSettings):
    """Effective settings of ``mesh-cloud``: a node of the cloud tier."""

    node: RouterNodeSettings = RouterNodeSettings()
