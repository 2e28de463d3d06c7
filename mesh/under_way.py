"""Requests sent and not yet answered, by node: a box that lost its power closes no connection.

Not here: noticing that a node is lost (``watcher``), sending (``dispatch``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from mesh.errors import NodeLost
from mesh.membership import Change


class UnderWay:
    """When the view gives a node up, what was sent there ends with ``NodeLost`` in place of waiting for its deadline.

    By cancelling the task from outside, as ``asyncio.timeout`` does: a task for each exchange would cost too much.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, dict[asyncio.Task[object], bool]] = {}
        """By node, and whether it was given up."""

    def on_change(self, change: Change) -> None:
        if change.new == "lost":
            tasks = self._tasks.get(change.node, {})
            for task, given_up in tasks.items():
                tasks[task] = given_up or task.cancel()

    @contextlib.contextmanager
    def to(self, node: str) -> Iterator[None]:
        """Inside, the current task is under way to ``node``."""
        task, tasks = asyncio.current_task(), self._tasks.setdefault(node, {})
        assert task is not None  # noqa: S101 - coroutines run in tasks
        tasks[task] = False
        given_up, others = False, 0
        try:
            try:
                yield
            finally:
                given_up = tasks.pop(task)
                others = self._uncancelled(task) if given_up else 0
                if not tasks:
                    self._tasks.pop(node, None)
        except asyncio.CancelledError:
            if not given_up or others:
                raise
            raise NodeLost(f"node {node} was lost while it held the request") from None

    @staticmethod
    def _uncancelled(task: asyncio.Task[object]) -> int:
        """Take our cancellation back; how many others there are (Python 3.10 cannot tell)."""
        uncancel = getattr(task, "uncancel", None)
        return uncancel() if uncancel is not None else 0
