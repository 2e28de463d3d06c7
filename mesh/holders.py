"""Which nodes list a model, by its name; and whether what they list under it is still what it was.

A name is looked up for every request and told of in every report, so neither may take longer the more nodes there are.
Not here: liveness and figures (``membership``), which version and bytes a name means (``balancer.resolve``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.membership import NodeView

_Facts = tuple[tuple[str, str, str, bool, bool], ...]
"""Of each model of a node: name, version, digest, whether it is READY, and whether the node is draining."""


class Holders:
    """The newest view of every node, under each of its models' names."""

    def __init__(self) -> None:
        self._views: dict[str, dict[str, NodeView]] = {}
        self._facts: dict[str, _Facts] = {}
        self._editions: dict[str, int] = {}
        self._last = 0

    def show(self, view: NodeView, *, gone: bool) -> None:
        """The node is like this now; one that is ``gone`` holds nothing any more."""
        node, models, draining = view.node, () if gone else view.models, view.state == "draining"
        facts = tuple([(m.name, m.version, m.digest, m.state == "READY", draining) for m in models])
        if facts != (known := self._facts.get(node, ())):
            self._change(node, {fact[0] for fact in known}, {fact[0] for fact in facts})
            if facts:
                self._facts[node] = facts
            else:
                del self._facts[node]
        for model in models:
            self._views[model.name][node] = view

    def _change(self, node: str, before: set[str], after: set[str]) -> None:
        self._last += 1
        for name in after:
            self._views.setdefault(name, {})
            self._editions[name] = self._last
        for name in before - after:
            del self._views[name][node]
            self._editions[name] = self._last
            if not self._views[name]:
                del self._views[name], self._editions[name]

    def of(self, model: str, *, draining: bool) -> Iterator[NodeView]:
        """Nodes that list any version of ``model``, those that are draining too if asked for."""
        views = self._views.get(model, {}).values()
        return (view for view in views if draining or view.state != "draining")

    def edition(self, model: str) -> int:
        """The same number as long as the same nodes list the same versions and bytes as READY; 0 while none does."""
        return self._editions.get(model, 0)
