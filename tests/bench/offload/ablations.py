"""The product's policy by name: as it is, with its dial turned, and with one part taken away each.

What a part was worth is the difference to ``ours``. Not here: the policy itself (ours.py, ``mesh.balancer``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from mesh.balancer import OURS
from mesh.messages import Queued
from mesh.outlook import Sent
from tests.bench.offload.ours import Ours
from tests.bench.offload.policy import Policy, Report, Request, World
from tests.bench.offload.profiles import best_row_ms, run_ms


class NoOwn(Ours):
    """What it sent since a node's last report does not count."""

    def _send(self, at: int, sent: Sent) -> int:
        return self._outlook.send(at, sent._replace(work_ms=0.0))


class NoEdf(Ours):
    """All that is queued goes first, whatever its deadline and class."""

    def _queued(self, report: Report) -> Queued:
        return ((1, (sum([sum(bins) for _, bins in report.queued]),)),) if report.queued else ()


class NoSlowdown(Ours):
    """Service times are those of the profile that is believed, not those that the node has learned."""

    def _costs(self, report: Report) -> tuple[tuple[float, ...], tuple[float, ...]]:
        profiles = self._profiles[report.node]
        return tuple(map(run_ms, profiles)), tuple(map(best_row_ms, profiles))

    def choose(self, request: Request, world: World) -> int | None:
        self._profiles = [node.profiles for node in world.nodes]
        return super().choose(request, world)


class NoRecall(Ours):
    """Nodes neither refuse what another would answer sooner, nor give it back while that still helps."""

    def choose(self, request: Request, world: World) -> int | None:
        node = super().choose(request, world)
        self.recall_ms = 0.0
        return node


class NoRefusal(Ours):
    """Nodes give requests back while it still helps, and never refuse them for another node's sake."""

    refusable = False


class NoResidual(Ours):
    """Predictions are not corrected by what answers took."""

    def answered(self, request: Request, node: int, took_ms: float, ok: bool, world: World) -> None:
        super().answered(request, node, took_ms, ok, world)
        self._outlook.bias[node] = self._outlook.sigma[node] = 0.0

    def _look(self, node: int, request: Request, world: World) -> bool:
        known = super()._look(node, request, world)  # type: ignore[arg-type]
        self._outlook.bias[node] = self._outlook.sigma[node] = 0.0
        return known


class NoErrors(Ours):
    """An error counts as the time it took."""

    error_counts = 0.0


class NoUplink(Ours):
    """Neighbours' bytes on the shared uplink are not known."""

    listens = False


_PARTS: dict[str, type[Ours]] = {
    "ours-no-own": NoOwn,
    "ours-no-edf": NoEdf,
    "ours-no-slowdown": NoSlowdown,
    "ours-no-recall": NoRecall,
    "ours-no-refusal": NoRefusal,
    "ours-no-residual": NoResidual,
    "ours-no-errors": NoErrors,
    "ours-no-uplink": NoUplink,
}
_DIALS = {
    "ours-fastest": replace(OURS, near_budget=0.0),
    "ours-thrifty": replace(OURS, near_budget=0.10),
    "ours-local-first": replace(OURS, near_budget=0.25, near_ratio=1e9),
    "ours-no-shed": replace(OURS, shed_from=99),
}

POLICIES: dict[str, Callable[[], Policy]] = {
    "ours": Ours,
    **{name: partial(Ours, name, dials) for name, dials in _DIALS.items()},
    **{name: partial(part, name) for name, part in _PARTS.items()},
}
