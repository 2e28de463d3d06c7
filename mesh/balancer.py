"""Which node runs a request: predicted completion, cheapest tier among the near-best, inside the deadline.

Pure functions of values: ``now`` (seconds of a monotonic clock) and the source of luck are arguments, so that the same
code decides in the product and in a simulation. Not here: the prediction (``estimator``), who is a candidate
(``membership`` and the router), what happens when the chosen node fails (``retry``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

from mesh.estimator import Ask, Candidate, Estimate, Path, estimate
from mesh.messages import ModelLoad
from mesh.values import ModelIdentity, ModelRef, Route

if TYPE_CHECKING:
    from random import Random

_COST: dict[Route, int] = {"local": 0, "peer": 1, "cloud": 2}
_REASON: dict[Route, str] = {route: f"{route} is the cheapest tier near the best" for route in _COST}


@dataclass(frozen=True, slots=True)
class Policy:
    """The dials of :func:`decide`.

    A dearer tier must win by more than a band, the least of ``near_budget`` of the time left and of ``near_ratio`` of
    the best prediction, but ``near_ms`` at least where the budget allows. The first bound is the regret a caller with
    a tight deadline can bear. The second is needed because deadlines are often defaults: a tenth of 10 s would keep a
    4 ms request in a local queue for a whole second.
    """

    name: Literal["ours"] = "ours"
    near_budget: float = 0.10
    near_ratio: float = 0.5
    near_ms: float = 2.0
    """Predictions closer than this, in ms, are taken as equal: reports and clocks are no better."""
    service_ms: float = 10.0
    """Service time of a model that has not run on any candidate yet."""

    def band_ms(self, best_ms: float, left_ms: float) -> float:
        return max(min(self.near_budget * left_ms, max(self.near_ms, self.near_ratio * best_ms)), 0.0)


OURS = Policy()


@dataclass(frozen=True, slots=True)
class Considered:
    """One candidate of a decision, and why it was or was not the one."""

    node: str
    route: Route
    path: Path
    estimate: Estimate
    feasible: bool
    """Predicted inside the deadline."""
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Where to send a request. ``node`` is None when there is nowhere; ``reason`` says why in any case."""

    node: str | None
    path: Path
    route: Route
    predicted_ms: float
    reason: str
    considered: Sequence[Considered] = ()
    """All candidates in the order given; worded only when read, with the figures of the moment of the decision."""


class _Scan(Sequence[Considered]):
    """The candidates of one decision with their estimates, turned into :class:`Considered` when somebody asks."""

    __slots__ = ("_candidates", "_chosen", "_estimates", "_left_ms", "_limit_ms")

    def __init__(
        self,
        candidates: Sequence[Candidate],
        estimates: Sequence[Estimate],
        left_ms: float,
        limit_ms: float,
        chosen: Candidate | None,
    ) -> None:
        self._candidates = candidates
        self._estimates = estimates
        self._left_ms = left_ms
        self._limit_ms = limit_ms
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._candidates)

    @overload
    def __getitem__(self, index: int) -> Considered: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Considered, ...]: ...
    def __getitem__(self, index: int | slice) -> Considered | tuple[Considered, ...]:
        if isinstance(index, slice):
            return tuple(map(self._word, self._candidates[index], self._estimates[index]))
        return self._word(self._candidates[index], self._estimates[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def _word(self, candidate: Candidate, predicted: Estimate) -> Considered:
        feasible = predicted.total_ms <= self._left_ms
        return Considered(
            candidate.node, candidate.route, candidate.path, predicted, feasible, self._why(candidate, predicted)
        )

    def _why(self, candidate: Candidate, predicted: Estimate) -> str:
        chosen, total = self._chosen, predicted.total_ms
        if candidate is chosen:
            return "chosen"
        if candidate.model.state != "READY":
            return f"the model is {candidate.model.state} there"
        if not candidate.ready and (chosen is None or chosen.ready):
            return "suspect"
        if total > self._left_ms:
            return f"{total - self._left_ms:.1f} ms past the deadline"
        if total > self._limit_ms:
            return f"{total - self._limit_ms:.1f} ms beyond the near-best"
        return "not drawn" if chosen is None or candidate.route == chosen.route else "a dearer tier"


def decide(ask: Ask, candidates: Sequence[Candidate], now: float, rng: Random, policy: Policy = OURS) -> Decision:
    """Choose where to run a request.

    All candidates are scanned. Of those near the best and inside the deadline the cheapest tier (local, peer, cloud)
    counts; two of it are drawn and the better one taken, so that routers with the same view do not all run to one
    node. Suspect nodes count only when no other is left, nodes whose model is not READY never. When no candidate is
    predicted inside the deadline the best one still gets the request: a prediction is too noisy to refuse on. A node
    that has not run the model yet is predicted by the median of those that have. There is no exploration: idle links
    fade to their prior, so every node is tried again in time.
    """
    pool = [i for i, c in enumerate(candidates) if c.ready and c.model.state == "READY"]
    reason = ""
    if not pool:
        pool = [i for i, c in enumerate(candidates) if c.model.state == "READY"]
        reason = "only suspect nodes are left"
    prior = _prior_service_ms(candidates, policy)
    estimates = [estimate(c, ask, now, prior) for c in candidates]
    if not pool:
        scan = _Scan(candidates, estimates, ask.left_ms, 0.0, None)
        return Decision(None, "local", "local", 0.0, "no candidates", scan)
    totals = [network_ms + wait_ms + service_ms for network_ms, wait_ms, service_ms in estimates]
    best = min([totals[i] for i in pool])
    limit = best + policy.band_ms(best, ask.left_ms)
    near = [i for i in pool if totals[i] <= limit and totals[i] <= ask.left_ms]
    if near:
        cheapest = min([_COST[candidates[i].route] for i in near])
        near = [i for i in near if _COST[candidates[i].route] == cheapest]
    else:
        near = [i for i in pool if totals[i] == best]
        reason = "no candidate inside the deadline"
    at = _draw(near, totals, rng)
    chosen = candidates[at]
    scan = _Scan(candidates, estimates, ask.left_ms, limit, chosen)
    return Decision(chosen.node, chosen.path, chosen.route, totals[at], reason or _REASON[chosen.route], scan)


def _draw(indexes: Sequence[int], totals: Sequence[float], rng: Random) -> int:
    """The better of two drawn at random; of equals the first drawn, not the first named."""
    count = len(indexes)
    if count == 1:
        return indexes[0]
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    second += second >= first
    one, other = indexes[first], indexes[second]
    return other if totals[other] < totals[one] else one


def _prior_service_ms(candidates: Sequence[Candidate], policy: Policy) -> float:
    known = sorted([c.model.service_ms for c in candidates if c.model.service_ms > 0.0])
    return known[len(known) // 2] if known else policy.service_ms


def resolve(ref: ModelRef, views: Iterable[tuple[str, ModelLoad]], local: ModelIdentity | None) -> ModelIdentity | None:
    """Settle which model is meant, version and bytes, before anything is sent (DESIGN D15); None if nobody holds it.

    ``local`` is what this very door would serve under the name, and wins if it is of the version asked for: a box's
    answers do not change with its neighbours. Else the version is the one asked for or the highest number, and of its
    digests the one that most nodes hold. Nodes where it is READY count; the others only when it is READY nowhere.
    """
    if local is not None and local.name == ref.name and ref.version in ("", local.version):
        return local
    held = [(node, m) for node, m in views if m.name == ref.name and ref.version in ("", m.version)]
    held = [(node, m) for node, m in held if m.state == "READY"] or held
    if not held:
        return None
    version = max((m.version for _, m in held), key=_version_order)
    nodes: dict[str, set[str]] = {}
    for node, m in held:
        if m.version == version:
            nodes.setdefault(m.digest, set()).add(node)
    digest = min(nodes, key=lambda digest: (-len(nodes[digest]), digest))
    return ModelIdentity(ref.name, version, digest)


def _version_order(version: str) -> tuple[int, str, str]:
    """Numbers by value, above all that is not a number; without ``int``, which refuses very long ones."""
    if not (version.isascii() and version.isdigit()):
        return -1, "", version
    digits = version.lstrip("0")
    return len(digits), digits, version
