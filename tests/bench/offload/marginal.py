"""Marginal-cost routing after Google's fluid-model theory: DGD-LB and GMSR, brought to single requests.

Both papers route divisible flow; what is written here is our own discretisation, hence "like". Not here: the rate
function of a batching node (``service``).
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.offload.baselines import Baseline, least
from tests.bench.offload.policy import Request, World
from tests.bench.offload.profiles import Profile, rows_per_ms


def marginal_ms(profile: Profile, rows: float, slowdown: float = 1.0) -> float:
    """d[N·L(N)]/dN where L(N) = N/μ(N) is the time in a batching node with N rows present.

    κ(a + 2cN) up to B rows, 2κN(a + cB)/B beyond.
    """
    a, c, most = profile
    if rows <= most:
        return slowdown * (a + 2.0 * c * rows)
    return slowdown * 2.0 * rows * (a + c * most) / most


def simplex(values: Sequence[float]) -> list[float]:
    """The nearest point of the probability simplex (Euclidean; Duchi et al., ICML 2008)."""
    total, shift = 0.0, 0.0
    for count, value in enumerate(sorted(values, reverse=True), start=1):
        total += value
        if value > (total - 1.0) / count:
            shift = (total - 1.0) / count
    return [max(value - shift, 0.0) for value in values]


class DgdLike(Baseline):
    """Distributed gradient descent on routing probabilities (DGD-LB, arXiv 2504.10693).

    Per model the frontend holds a probability for each node and moves it against the delayed marginal cost g = network
    + d[N·L(N)]/dN at the reported N plus our own unanswered sends: x ← Π(x - η·Δt·(g - ḡ)/scale), Π onto the simplex.
    ``step`` is η in 1/s with costs scaled by their mean; the paper bounds it by the network delay: 1/(4·RTT) at 50 ms
    gives the default 5. ``floor`` keeps a trace of traffic on every node, which single requests need to hear of change.
    """

    name = "dgd-lb-like"

    def __init__(self, step: float = 5.0, floor: float = 0.005) -> None:
        self._step, self._floor = step, floor
        self._shares: dict[int, dict[int, float]] = {}
        self._at: dict[int, float] = {}

    def choose(self, request: Request, world: World) -> int | None:
        nodes = world.candidates(request)
        if not nodes:
            return None
        shares = self._descend(request, nodes, world)
        weights = [max(shares[node], self._floor) for node in nodes]
        return world.luck.choices(nodes, weights)[0]

    def _descend(self, request: Request, nodes: Sequence[int], world: World) -> dict[int, float]:
        old, model = self._shares.get(request.model, {}), request.model
        even = 1.0 / len(nodes)
        values = [old.get(node, even) for node in nodes]
        costs = [self._cost(request, node, world) for node in nodes]
        mean = sum(costs) / len(costs)
        span_s = min(world.now - self._at.get(model, world.now), 0.1)
        self._at[model] = world.now
        moved = [v - self._step * span_s * (g - mean) / mean for v, g in zip(values, costs, strict=True)]
        shares = self._shares[model] = dict(zip(nodes, simplex(moved), strict=True))
        return shares

    def _cost(self, request: Request, node: int, world: World) -> float:
        rows, slowdown = _present(world, node)
        return world.network_ms(node, request) + marginal_ms(world.nodes[node].profiles[request.model], rows, slowdown)


class GmsrLike(Baseline):
    """Greatest marginal service rate (GMSR, arXiv 2411.17103): the node whose rate grows most by one more row.

    μ(N + 1) - μ(N) of the batching node at the N it holds, over its slowdown; beyond B it is 0, and of nodes with 0 the
    one with the least N/μ(N) plus network is taken. GMSR knows neither network nor deadline. With ``fits`` only nodes
    whose network and one run fit the time left are considered, as long as there are any; with ``network`` the rate is,
    by Little's law, that of node and way together, N/(network + N/μ(N)).
    """

    name = "gmsr-like"

    def __init__(self, fits: bool = True, network: bool = False) -> None:
        self._fits, self._network = fits, network

    def choose(self, request: Request, world: World) -> int | None:
        nodes = list(world.candidates(request))
        if not nodes:
            return None
        if self._fits:
            left_ms = (request.deadline_s - world.now) * 1e3
            nodes = [n for n in nodes if self._least_ms(request, n, world) <= left_ms] or nodes
        gain = {node: self._gain(request, node, world) for node in nodes}
        if max(gain.values()) > 0.0:
            return least(nodes, lambda node: -gain[node], world.luck)
        return least(nodes, lambda node: self._time_ms(request, node, world), world.luck)

    def _gain(self, request: Request, node: int, world: World) -> float:
        rows, slowdown = _present(world, node)
        profile = world.nodes[node].profiles[request.model]
        way_ms = world.network_ms(node, request) if self._network else 0.0
        more, now = (_through(profile, rows + extra, slowdown, way_ms) for extra in (1.0, 0.0))
        return more - now

    def _least_ms(self, request: Request, node: int, world: World) -> float:
        a, c, _ = world.nodes[node].profiles[request.model]
        return world.network_ms(node, request) + _present(world, node)[1] * (a + c)

    def _time_ms(self, request: Request, node: int, world: World) -> float:
        rows, slowdown = _present(world, node)
        rate = rows_per_ms(world.nodes[node].profiles[request.model], rows + 1)
        return world.network_ms(node, request) + slowdown * (rows + 1) / rate


def _through(profile: Profile, rows: float, slowdown: float, way_ms: float) -> float:
    rate = rows_per_ms(profile, rows) / slowdown
    return rows / (way_ms + rows / rate) if rows > 0.0 else 0.0


def _present(world: World, node: int) -> tuple[float, float]:
    """Rows at the node and its slowdown: as reported, and what we sent there since."""
    report = world.report(node)
    if report is None:
        return float(world.in_flight(node)), 1.0
    since = sum(sent_s > report.taken_s for sent_s, _ in world.sent(node))
    return float(report.in_flight + since), max(report.slowdown, 1e-3)
