"""How far a build is: TensorRT's nested phases and their steps become one share that only grows.

Phases are what ``IProgressMonitor`` is told; a phase inside another lies within one of its steps. Not here: TensorRT
(``engine_plan`` connects the two), who is told (``engine_process``).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """Thread-safe: TensorRT may report from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._share = 0.0
        self._phase = ""

    @property
    def share(self) -> float:
        """0 to 1; never less than before. Steps differ in length, so that it tells work done, not time left."""
        return self._share

    @property
    def phase(self) -> str:
        """The phase begun last."""
        return self._phase

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))
            self._phase = name

    def step(self, name: str, step: int) -> None:
        """``step`` of the phase is done, counted from 0."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = max(phase.done, min(phase.steps, step + 1))
            self._update()

    def finish(self, name: str) -> None:
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = phase.steps
            self._update()
            self._phases.pop(name, None)

    def _update(self) -> None:
        roots = [self._part(name, 0) for name, phase in self._phases.items() if phase.parent not in self._phases]
        self._share = max(self._share, min(1.0, max(roots, default=0.0)))

    def _part(self, name: str, depth: int) -> float:
        phase = self._phases[name]
        if depth > len(self._phases):  # parents in a circle
            return 0.0
        inner = [self._part(child, depth + 1) for child, other in self._phases.items() if other.parent == name]
        return min(1.0, (phase.done + max(inner, default=0.0)) / phase.steps)
