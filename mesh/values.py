"""Frozen values that every part of the mesh speaks of: models, nodes, tiers, states.

Not here: what travels on the wire (``messages``), behaviour of any kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["edge", "cloud"]
"""Where a node stands: in a site, or in a data centre."""

Route = Literal["local", "peer", "cloud"]
"""Where a request ran, seen from the first door that took it."""

NodeState = Literal["starting", "ready", "draining", "suspect", "lost", "left"]

InstanceState = Literal["LOADING", "BUILDING", "WARMING", "READY", "DRAINING", "FAILED", "QUARANTINED"]

NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
"""Names of models, nodes, sites and meshes. Dots are allowed: bus subjects encode them (``subjects``)."""
VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,17}")
"""As Triton has it: what begins with a zero, or is no number, is no version."""


LABELS = "labels."
"""Begins the parameters of metadata that hold an output's classes, one a line."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as asked for; ``version`` is empty for the default version."""

    name: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else self.name


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model as it is: two nodes serve the same model only if all three agree (DESIGN D15).

    ``digest`` is the hex sha256 over the files of the version.
    """

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Declared input or output of a model: OIP ``datatype`` and ``shape``, -1 for a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What ``GET /v2/models/<name>`` answers (OIP, "Model Metadata")."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Names of an output's classes, where they are known."""
        found = {n.removeprefix(LABELS): text for n, text in self.parameters.items() if n.startswith(LABELS)}
        return {output: text.split("\n") for output, text in found.items()}
