"""Which models are in a node's memory, which one is being loaded, and which make room for it.

Loads go on beside the device's runs, one at a time; whoever was idle longest goes, but nobody soon after its last use,
or two models would push each other out for ever. Not here: requests that wait for a load (device.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

from tests.bench.offload.scenario import Model

CHURN = 2.0
"""A model must have been idle for this many times its load time before it makes room for another."""


class Memory:
    """At the start it holds what fits of the most popular models, each node from another one on; `room` 0 holds all."""

    def __init__(self, models: Sequence[Model], room: float, first: int) -> None:
        self.resident: dict[int, float] = {}
        """When each model was last asked for."""
        self.loading: dict[int, float] = {}
        """When the load will be over."""
        self._models = models
        self._room = left = room or inf
        for rank in range(len(models)):
            model = (rank + first) % len(models)
            if models[model].size <= left:
                left -= models[model].size
                self.resident[model] = 0.0

    def load_ms(self, model: int, now: float) -> float:
        """Until the model is in memory, if its load begins now or has begun."""
        if model in self.resident:
            return 0.0
        ends_s = self.loading.get(model)
        return self._models[model].load_s * 1e3 if ends_s is None else max(ends_s - now, 0.0) * 1e3

    def wants(self, model: int, busy: Collection[int], now: float) -> float | None:
        """Note that a model is asked for; seconds of its load if that begins now. `busy` ones make no room."""
        if model in self.resident:
            self.resident[model] = now
            return None
        if self.loading:
            return None
        free = self._room - sum([self._models[m].size for m in self.resident])
        out = []
        for other in sorted(self.resident, key=self.resident.__getitem__):
            if free >= self._models[model].size:
                break
            if other not in busy and now - self.resident[other] >= CHURN * self._models[other].load_s:
                out.append(other)
                free += self._models[other].size
        if free < self._models[model].size:
            return None
        for other in out:
            del self.resident[other]
        self.loading[model] = now + self._models[model].load_s
        return self._models[model].load_s

    def loaded(self, model: int, now: float) -> None:
        del self.loading[model]
        self.resident[model] = now
