"""The models of the mesh as seen from this node: what a name means now, who is ready, what is held here.

Read-only over the membership and the node's own models. Not here: ways to reach a node (``ways``), liveness.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Protocol

from mesh.balancer import resolve
from mesh.deadline import Deadline
from mesh.errors import InvalidRequest, MeshError, ModelNotFound, ModelNotReady, NoReadyInstance
from mesh.messages import ModelLoad, Work
from mesh.oip.request import InferRequest
from mesh.oip.statistics import ModelStatistics
from mesh.oip.wire import WireBody
from mesh.values import VERSION_PATTERN, ModelIdentity, ModelMetadata, ModelRef
from mesh.watcher import Watcher

MAX_MEANT = 1024
"""References of which it is remembered what they mean; beyond that it begins anew."""


class LocalModels(Protocol):
    """The models this node runs itself."""

    def identity(self, ref: ModelRef) -> ModelIdentity | None:
        """What this node would serve under ``ref``, READY or on its way there; None if nothing."""

    def load(self, identity: ModelIdentity) -> ModelLoad | None:
        """The version of that name here, in whatever state, whatever its digest."""

    def held(self, name: str) -> tuple[ModelLoad, ...]:
        """Every version of the model here, in whatever state."""

    def work(self) -> Work:
        """All there is to do on this node now."""

    @property
    def draining(self) -> bool: ...

    async def infer(self, request: InferRequest, identity: ModelIdentity, deadline: Deadline) -> WireBody: ...

    def stream(
        self, request: InferRequest, identity: ModelIdentity, deadline: Deadline
    ) -> AsyncGenerator[WireBody, None]:
        """The answers of a decoupled model, each in its wire form; closing the iterator ends the run."""

    def metadata(self, identity: ModelIdentity) -> ModelMetadata:
        """Raises ``ModelNotReady`` while it is not loaded."""

    def config(self, identity: ModelIdentity) -> dict[str, Any]:
        """Triton's model configuration as its JSON has it. Raises as :meth:`metadata` does."""

    def statistics(self, ref: ModelRef | None) -> tuple[ModelStatistics, ...]:
        """Of every version held here that ``ref`` means, None being all models. Raises ``ModelNotFound``."""


class View:
    """``local`` is None where the process holds no models."""

    def __init__(self, node: str, watcher: Watcher, local: LocalModels | None) -> None:
        self.node = node
        self.watcher = watcher
        self.local = local
        self._meant: dict[ModelRef, tuple[int, ModelIdentity]] = {}
        """What others were found to mean, and in which edition of their holdings."""

    def here(self, name: str) -> tuple[ModelLoad, ...]:
        return self.local.held(name) if self.local is not None else ()

    def elsewhere(self, name: str) -> Iterator[tuple[str, ModelLoad]]:
        for view in self.watcher.membership.holders(name):
            for load in view.report.models:
                if load.name == name:
                    yield view.node, load

    def resolve(self, ref: ModelRef, digest: str = "") -> ModelIdentity:
        """Which (name, version, digest) a reference means now (DESIGN D15); ``digest`` if the first door did it.

        Raises ``ModelNotFound``, or ``InvalidRequest`` for what can be no version.
        """
        if digest:
            return ModelIdentity(ref.name, ref.version, digest)
        if self.local is not None and (own := self.local.identity(ref)) is not None:
            return own  # a box's answers do not change with its neighbours
        mine, edition = self.here(ref.name), self.watcher.membership.edition(ref.name)
        if not mine and (known := self._meant.get(ref)) is not None and known[0] == edition:
            return known[1]
        held = [*((self.node, load) for load in mine), *self.elsewhere(ref.name)]
        identity = resolve(ref, held, None)
        if identity is None:
            raise _unknown(ref, held=bool(held))
        if not mine:
            if len(self._meant) >= MAX_MEANT:
                self._meant.clear()
            self._meant[ref] = edition, identity
        return identity

    def ready(self, ref: ModelRef) -> bool:
        """Whether some node has the model READY. Raises ``ModelNotFound``."""
        identity = self.resolve(ref)
        loads = [*self.here(ref.name), *(load for _, load in self.elsewhere(ref.name))]
        return any(load.identity == identity and load.state == "READY" for load in loads)

    async def acquainted(self, ref: ModelRef) -> None:
        """Return at once where a node has the model READY, else when all nodes on the bus were heard: one that has just
        come to a bus takes requests before it knows who is there."""
        left_s = self.watcher.unheard_s()
        if left_s > 0.0:
            with contextlib.suppress(MeshError):  # whoever resolves it next says why
                if self.ready(ref):
                    return
            await asyncio.sleep(left_s)

    def held(self, identity: ModelIdentity) -> bool:
        """Whether some node holds that version, in whatever state and of whatever bytes."""
        loads = [*self.here(identity.name), *(load for _, load in self.elsewhere(identity.name))]
        return any(load.version == identity.version for load in loads)

    def facts(self, identity: ModelIdentity) -> ModelLoad | None:
        """What its holders say of the model: this node's own word first."""
        load = self.local.load(identity) if self.local is not None else None
        if load is not None:
            return load
        return next((load for _, load in self.elsewhere(identity.name) if load.version == identity.version), None)

    def missing(self, identity: ModelIdentity, reason: str) -> MeshError:
        """Why no node can be asked for the model: what its holders say is in the way, else ``reason``."""
        for load in self.here(identity.name):
            if load.version == identity.version and load.state != "READY":
                reason = f": {load.reason}" if load.reason else ""
                return ModelNotReady(f"model {identity.name!r} is {load.state} on this node{reason}")
        for node, load in self.elsewhere(identity.name):
            if load.identity == identity and load.reason and load.state != "READY":
                return NoReadyInstance(f"model {identity.name!r} is {load.state} on node {node}: {load.reason}")
        return NoReadyInstance(f"no node can run model {identity.name!r} now: {reason}")

    def stay(self, identity: ModelIdentity) -> str:
        """What the model declares of where its requests may run (``pins``), as its holders say."""
        facts = self.facts(identity)
        return facts.stay if facts is not None else ""


def _unknown(ref: ModelRef, *, held: bool) -> MeshError:
    """Begins with the words that Triton's clients look for."""
    if ref.version and not VERSION_PATTERN.fullmatch(ref.version):
        what = f"version string {ref.version!r}: versions are numbers, from 1 on"
        return InvalidRequest(f"failed to get model version from specified {what}")
    what = f"version {ref.version!r} of model {ref.name!r}" if held else f"model {ref.name!r}"
    return ModelNotFound(f"Request for unknown model: {what} is not found")
