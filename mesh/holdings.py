"""What a process puts into its node: the models that it runs, and what there is to say of them.

Not here: the node itself (``node``), the models (``edge``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.messages import Gauges, ModelLoad, Work
from mesh.metrics import Measured
from mesh.repository import ModelRepository
from mesh.view import LocalModels


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node holds, asked for at every report; a router holds nothing."""

    local: LocalModels | None = None
    models: Callable[[], tuple[ModelLoad, ...]] = tuple
    coming: Callable[[], tuple[str, ...]] = tuple
    work: Callable[[], Work] = Work
    gauges: Callable[[], Gauges] = Gauges
    capacity: Callable[[], float] = lambda: 1.0
    repository: ModelRepository | None = None
    metrics: Callable[[], Iterable[Measured]] = tuple
    """What is measured beside what every node has."""
