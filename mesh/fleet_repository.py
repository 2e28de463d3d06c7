"""The repositories of all nodes as one: their indices merged, and loading by name wherever the model is listed.

What a node allows is the node's own decision. Implements ``mesh.repository.ModelRepository`` at doors that have no
models of their own. Not here: one node's repository (``edge.control``), how nodes are asked (``inquiry``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mesh.deadline import Deadline
from mesh.errors import MeshError, ModelNotFound, ProtocolError, Unsupported
from mesh.hop import Question
from mesh.inquiry import EVERYTHING, Inquiry
from mesh.lifecycle import within
from mesh.repository import IndexEntry, load_body, override
from mesh.values import ModelRef
from mesh.view import View

log = logging.getLogger(__name__)

INDEX_MS = 5_000.0
LOAD_MS = 600_000.0
"""Milliseconds that loading may take on a node, engines and all."""
SEEN_S = 5.0
"""Longest that it is waited until the reports of the nodes say what they answered already."""
_STANDING = {"READY": 3, "LOADING": 2, "UNLOADING": 1}
_index = msgspec.json.Decoder(list[IndexEntry])


class FleetRepository:
    """Of the nodes that run models and can be reached."""

    def __init__(self, view: View, inquiry: Inquiry) -> None:
        self._view = view
        self._inquiry = inquiry
        self._moved = asyncio.Event()
        view.watcher.on_news(lambda _: self._moved.set())

    async def index(self) -> list[IndexEntry]:
        """A node that does not answer is left out, and named in the log; raises if none does."""
        return merged(entry for entries in (await self._indices()).values() for entry in entries)

    async def load(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        """On every node that lists the model, at the same time; raises the error of the first that fails, by name."""
        config = override(name, parameters)
        nodes = [node for node, entries in (await self._indices()).items() if any(e.name == name for e in entries)]
        if not nodes:
            raise ModelNotFound(f"failed to load {name!r}: no node of the mesh has a model of that name")
        await self._change("load", name, nodes, load_body(config))
        await self._until_seen(name, nodes, ready=True)

    async def unload(self, name: str) -> None:
        """On every node that has it loaded."""
        indices = await self._indices()
        nodes = [node for node, found in indices.items() if any(e.name == name and e.version for e in found)]
        if not nodes:
            raise ModelNotFound(f"model {name!r} is loaded on no node of the mesh")
        await self._change("unload", name, nodes, b"")
        await self._until_seen(name, nodes, ready=False)

    async def _indices(self) -> dict[str, list[IndexEntry]]:
        """By node, of those that answer and have a repository."""
        nodes = self._inquiry.agents()
        answers = await self._inquiry.each(nodes, "index", EVERYTHING, Deadline.after_ms(INDEX_MS))
        found, failed = {}, []
        for node, answer in answers.items():
            if isinstance(answer, Unsupported):
                continue
            try:
                found[node] = _entries(answer)
            except MeshError as error:
                log.warning("the index of node %s is missing: %s", node, error.text)
                failed.append(error)
        if failed and not found:
            raise failed[0]
        return found

    async def _change(self, what: Question, name: str, nodes: list[str], body: bytes) -> None:
        answers = await self._inquiry.each(nodes, what, ModelRef(name), Deadline.after_ms(LOAD_MS), body)
        for node, answer in answers.items():
            if isinstance(answer, MeshError):
                raise type(answer)(f"node {node}: {answer.text}", retry_after_s=answer.retry_after_s)

    async def _until_seen(self, name: str, nodes: list[str], *, ready: bool) -> None:
        """What was done shows in the next reports, and whoever asks this door next should find it so."""

        async def seen() -> None:
            while not all(self._is_ready(node, name) is ready for node in nodes):
                self._moved.clear()
                await self._moved.wait()

        with contextlib.suppress(asyncio.TimeoutError):
            await within(SEEN_S, seen())

    def _is_ready(self, node: str, name: str) -> bool:
        view = self._view.watcher.membership.get(node)
        return view is not None and any(m.name == name and m.state == "READY" for m in view.models)


def merged(entries: Iterable[IndexEntry]) -> list[IndexEntry]:
    """One entry of each version, that of the node where it is nearest to serving; by name and version."""
    best: dict[tuple[str, str], IndexEntry] = {}
    for entry in entries:
        key = entry.name, entry.version
        if key not in best or _STANDING.get(entry.state, 0) > _STANDING.get(best[key].state, 0):
            best[key] = entry
    versioned = {name for name, version in best if version}
    kept = [entry for entry in best.values() if entry.version or entry.name not in versioned]
    return sorted(kept, key=lambda entry: (entry.name, len(entry.version), entry.version))


def _entries(answer: bytes | MeshError) -> list[IndexEntry]:
    if isinstance(answer, MeshError):
        raise answer
    try:
        return _index.decode(answer)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the answer is not a repository index: {error}") from None
