"""Requests sent and not yet answered, by node: a box that lost its power closes no connection.

Not here: noticing that a node is lost (``watcher``), sending (``dispatch``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mesh.errors import NodeLost
from mesh.lifecycle import Endable
from mesh.membership import Change


class Sent(Endable):
    """To one node, until that is lost."""

    def __init__(self, node: str) -> None:
        super().__init__(lambda: NodeLost(f"node {node} was lost while it held the request"))
        self.users = 0
        self._lost = False

    def lose(self) -> None:
        self._lost = True
        self.tell()

    def check(self) -> None:
        """Raises ``NodeLost``: between two waits there is nothing that could be ended."""
        if self._lost:
            raise self._ended()


class UnderWay:
    """When the view gives a node up, what was sent there ends with ``NodeLost``, and waits for no deadline."""

    def __init__(self) -> None:
        self._nodes: dict[str, Sent] = {}

    def on_change(self, change: Change) -> None:
        if change.new == "lost" and (sent := self._nodes.pop(change.node, None)) is not None:
            sent.lose()

    @contextlib.contextmanager
    def to(self, node: str) -> Iterator[None]:
        """Inside, the current task is under way to ``node``."""
        with self.stream(node) as sent, sent.one():
            yield

    @contextlib.contextmanager
    def stream(self, node: str) -> Iterator[Sent]:
        """Inside, a stream comes from ``node``: each wait for it is ``one``, behind a ``check``."""
        sent = self._nodes.get(node)
        if sent is None:
            sent = self._nodes[node] = Sent(node)
        sent.users += 1
        try:
            yield sent
        finally:
            sent.users -= 1
            if not sent.users and self._nodes.get(node) is sent:
                del self._nodes[node]
