"""Asking nodes about their models: a document of one that holds it, or the word of each that does.

Not here: inferences (``router``), the repository (``fleet_repository``), what the documents say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import msgspec

from mesh.deadline import Deadline
from mesh.errors import MeshError, ModelNotFound, ModelNotReady, NodeUnreachable, ProtocolError
from mesh.hop import Context, Question
from mesh.oip.documents import decode_model_metadata
from mesh.oip.statistics import ModelStatistics, decode_statistics, merged
from mesh.under_way import UnderWay
from mesh.values import ModelIdentity, ModelMetadata, ModelRef
from mesh.view import LocalModels, View
from mesh.ways import NodeWays

log = logging.getLogger(__name__)

EVERYTHING = ModelRef("")
ASKED_MS = 2_000.0
"""Milliseconds that nodes have to say what they counted."""


class Inquiry:
    """Of what is held here nobody else is asked; a request that another door passed on is never passed on again.

    A node that is lost meanwhile is not waited for: loading may take minutes, and a box without power closes nothing.
    """

    def __init__(self, view: View, ways: NodeWays) -> None:
        self._view = view
        self._ways = ways
        self._under_way = UnderWay()
        view.watcher.on_change(self._under_way.on_change)

    async def metadata(self, identity: ModelIdentity, context: Context) -> ModelMetadata:
        """From here, else of the first holder that answers."""
        if (local := self._here(identity)) is not None:
            with contextlib.suppress(ModelNotReady):
                return local.metadata(identity)
        return decode_model_metadata(await self._of_a_holder("metadata", identity, context))

    async def config(self, identity: ModelIdentity, context: Context) -> dict[str, Any]:
        """As :meth:`metadata`: Triton's model configuration by the names of its JSON."""
        if (local := self._here(identity)) is not None:
            with contextlib.suppress(ModelNotReady):
                return local.config(identity)
        answer = await self._of_a_holder("config", identity, context)
        try:
            return msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"the answer is not a model configuration: {error}") from None

    async def statistics(self, ref: ModelRef | None, hops: int) -> list[ModelStatistics]:
        """Of the versions that ``ref`` means: counted here where they are held here, else added up over the nodes that
        hold them. None is all models: of this node, or of the whole mesh where it holds none itself.

        A node that does not answer in time, or no statistics, is left out, and named in the log. Raises
        ``ModelNotFound``, or the error of the nodes if none of them answers.
        """
        local = self._view.local
        if local is not None and (hops > 0 or ref is None or _holds(local, ref)):
            own = local.statistics(ref)
            if own or hops > 0:
                return list(own)
        nodes = self.agents() if ref is None else [node for node, _ in self._view.elsewhere(ref.name)]
        if ref is not None and not nodes:
            raise ModelNotFound(f"Request for unknown model: model {ref.name!r} is not found")
        if hops > 0:
            return []
        found: list[ModelStatistics] = []
        failed: list[MeshError] = []
        answers = await self.each(nodes, "statistics", ref or EVERYTHING, Deadline.after_ms(ASKED_MS))
        for node, answer in answers.items():
            try:
                found += _statistics(answer)
            except MeshError as error:  # noqa: PERF203 - a round is a node
                log.log(logging.DEBUG if isinstance(error, ModelNotFound) else logging.WARNING,
                        "the statistics lack node %s: %s", node, error.text)  # fmt: skip
                failed.append(error)
        if failed and len(failed) == len(answers):
            raise failed[0]
        return merged(found)

    async def each(
        self, nodes: Iterable[str], what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b""
    ) -> dict[str, bytes | MeshError]:
        """Ask several nodes at the same time: what each of them answered, or why it did not."""
        asked = list(dict.fromkeys(nodes))
        answers = await asyncio.gather(
            *(self._ask(node, what, ref, deadline, body) for node in asked), return_exceptions=True
        )
        found: dict[str, bytes | MeshError] = {}
        for node, answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, MeshError):
                raise answer
            found[node] = answer
        return found

    def agents(self) -> list[str]:
        """Nodes that may hold models and can be asked, by name."""
        views = self._view.watcher.membership.nodes()
        return sorted(v.node for v in views if v.report.role == "agent" and self._ways.to(v.node) is not None)

    def _here(self, identity: ModelIdentity) -> LocalModels | None:
        local = self._view.local
        mine = local.load(identity) if local is not None else None
        return local if mine is not None and mine.identity == identity else None

    async def _of_a_holder(self, what: Question, identity: ModelIdentity, context: Context) -> bytes:
        if context.hops > 0:
            raise ModelNotReady(f"model {identity.name!r} is not loaded on node {self._view.node}")
        failed = self._view.missing(identity, "no node that holds it can be asked")
        ref = ModelRef(identity.name, identity.version)
        for node, load in list(self._view.elsewhere(identity.name)):
            if load.identity == identity and load.state == "READY":
                try:
                    return await self._ask(node, what, ref, context.deadline)
                except MeshError as error:
                    failed = error
        raise failed

    async def _ask(self, node: str, what: Question, ref: ModelRef, deadline: Deadline, body: bytes = b"") -> bytes:
        way = self._ways.to(node)
        if way is None or way.hop is None:
            raise NodeUnreachable(f"node {node} has no door that answers here, and no bus leads to it")
        with self._under_way.to(node):
            return await way.hop.ask(way.target, what, ref, deadline, body)


def _statistics(answer: bytes | MeshError) -> list[ModelStatistics]:
    if isinstance(answer, MeshError):
        raise answer
    return decode_statistics(answer)


def _holds(local: LocalModels, ref: ModelRef) -> bool:
    return any(ref.version in ("", load.version) for load in local.held(ref.name))
