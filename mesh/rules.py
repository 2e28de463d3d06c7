"""The rules that can choose a node, by the names that the setting ``router.policy`` takes: ours, and rivals to compare.

All of them read the same outlook and say the same kind of decision. Pure: ``now`` (seconds of a monotonic clock) and
the source of luck are arguments. Not here: our own rule (``balancer``), Prequal's pool of probes (``prequal``), which
slots a request must not go to (``ways``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from math import exp, inf
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from mesh.balancer import OURS, Decision, Policy, decide
from mesh.estimator import Ask, Estimate, Estimates, estimate
from mesh.outlook import SUSPECT_MS, Column, Outlook
from mesh.prequal import Dials, Pool, Probe

if TYPE_CHECKING:
    from random import Random

FAILED = 2.0
"""What an error counts as, in times of what the caller gave: a node that fails fast attracts nobody."""
UNANSWERED = 1.0
"""The same for a late answer and a refusal."""
UNKNOWN_MS = float((2**63 - 1) >> 16)
"""Finagle's cost of a node that has never answered but holds a request (PeakEwma.scala)."""
HISTORY = 64
"""Answers per node and model that Prequal's latency is drawn from."""
NEAREST = 9
"""Of these, so many with the nearest number in flight count."""
ENOUGH = 3
"""With fewer answers than that, the node's own figures count."""
MAX_SENT = 4096
"""Requests under way that are remembered; the oldest are forgotten."""
MAX_MODELS = 1024
"""Of which a node's answers are remembered; beyond that it begins anew."""


Kind = Literal["answer", "error", "late", "refusal"]


class Seen(NamedTuple):
    """How a request came out at the node that it was sent to."""

    took_ms: float
    """From send to the end, by our clock."""
    server_ms: float
    """What the node says it held it; 0 if unknown."""
    network_ms: float
    """Predicted when it was sent."""
    kind: Kind

    def counted_ms(self, given_ms: float) -> float:
        """What it counts as where the caller gave ``given_ms``: an answer its time, all else at least a failure's."""
        if self.kind == "answer":
            return self.took_ms
        return max(self.took_ms, (FAILED if self.kind == "error" else UNANSWERED) * given_ms)


class Rule(Protocol):
    """One way to choose; one instance for each router."""

    at_once_ms: float
    """An idle node of its own that is predicted to answer so soon is taken without asking the rule."""

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        """Where the request goes; never to a slot in ``without``."""

    def answered(self, slot: int, ask: Ask, seen: Seen, now: float) -> None:
        """Learn how a request came out; ``ask`` is the one that it was chosen for."""


class Choice(Decision):
    """What a rule chose that knows neither tiers nor deadlines; nothing is called back."""

    __slots__ = ()

    @property
    def recall_ms(self) -> float:
        return 0.0

    def _why(self, slot: int, predicted: Estimate, feasible: bool) -> str:
        if slot == self.slot:
            return "chosen"
        return "suspect" if self._estimates.penalty[slot] >= SUSPECT_MS else "not chosen"


class Candidates(NamedTuple):
    """Slots that may run a request, and what is predicted of them; suspect ones only where nothing else is left."""

    slots: list[int]
    estimates: Estimates
    outlook: Outlook
    left_ms: float

    @classmethod
    def of(cls, ask: Ask, outlook: Outlook, now: float, without: Sequence[int]) -> Candidates:
        estimates = estimate(outlook, ask, now)
        total = estimates.total
        total[list(without)] = inf
        usable = np.isfinite(total)
        sure = usable & (estimates.penalty < SUSPECT_MS)
        return cls(np.flatnonzero(sure if sure.any() else usable).tolist(), estimates, outlook, ask.left_ms)

    def take(self, slot: int | None, reason: str) -> Choice:
        return Choice(slot, reason, self.estimates, self.outlook, OURS, self.left_ms, inf)

    def none(self) -> Choice:
        return self.take(None, "no candidates")


class Ours:
    """Predicted completion, the cheapest tier near the best (``balancer``). The router itself teaches residuals."""

    def __init__(self, policy: Policy = OURS) -> None:
        self._policy = policy
        self.at_once_ms = policy.near_ms

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        return decide(ask, outlook, now, rng, self._policy, without)

    def answered(self, slot: int, ask: Ask, seen: Seen, now: float) -> None:
        return None


class LocalOnly:
    """This very process. What it does not hold goes to the first node that does; what failed here goes nowhere."""

    at_once_ms = 0.0

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        found = Candidates.of(ask, outlook, now, without)
        holds = np.isfinite(outlook.penalty + outlook.of(ask.model)[0])
        here = next((slot for slot, link in enumerate(outlook.links) if link is None and holds[slot]), None)
        if here is not None:
            return found.none() if here in without else found.take(here, "it runs here")
        if not found.slots:
            return found.none()
        return found.take(found.slots[0], "the first that holds the model")

    def answered(self, slot: int, ask: Ask, seen: Seen, now: float) -> None:
        return None


class Peak:
    """A peak-sensitive average (twitter/finagle PeakEwma.scala, there in ns): a sample above it is believed at once,
    below it with weight 1 - e^(-Δt/τ); reading it observes a 0.
    """

    __slots__ = ("_at_s", "cost_ms", "node")

    def __init__(self, node: str, now: float) -> None:
        self.node, self._at_s, self.cost_ms = node, now, 0.0

    def observe(self, ms: float, now: float, tau_s: float) -> None:
        kept = exp(-max(now - self._at_s, 0.0) / tau_s)
        self._at_s = max(now, self._at_s)
        self.cost_ms = ms if ms > self.cost_ms else self.cost_ms * kept + ms * (1.0 - kept)

    def load_ms(self, in_flight: int, now: float, tau_s: float) -> float:
        self.observe(0.0, now, tau_s)
        if self.cost_ms == 0.0 and in_flight:
            return UNKNOWN_MS + in_flight
        return self.cost_ms * (in_flight + 1)


class PeakEwma:
    """Least :class:`Peak` x (own requests there + 1) of all candidates; reports are not looked at.

    Finagle's rule with a full scan in place of two draws. A node that has not answered yet and holds nothing of ours
    costs 0 and comes first. τ is 10 s as published, which is also what it does best with.
    """

    at_once_ms = 0.0

    def __init__(self, tau_s: float = 10.0) -> None:
        self._tau_s = tau_s
        self._peaks: dict[int, Peak] = {}

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        found = Candidates.of(ask, outlook, now, without)
        if not found.slots:
            return found.none()
        tau_s = self._tau_s
        costs = [self._peak(s, outlook, now).load_ms(outlook.in_flight(s), now, tau_s) for s in found.slots]
        lowest = min(costs)
        equal = [slot for slot, cost in zip(found.slots, costs, strict=True) if cost == lowest]
        return found.take(equal[0] if len(equal) == 1 else rng.choice(equal), "the least peak-EWMA of its answers")

    def answered(self, slot: int, ask: Ask, seen: Seen, now: float) -> None:
        peak = self._peaks.get(slot)
        if peak is not None:
            peak.observe(seen.counted_ms(ask.given_ms), now, self._tau_s)

    def _peak(self, slot: int, outlook: Outlook, now: float) -> Peak:
        """A slot's next owner begins anew."""
        peak = self._peaks.get(slot)
        if peak is None or peak.node != outlook.names[slot]:
            peak = self._peaks[slot] = Peak(outlook.names[slot], now)
        return peak


class Answers(NamedTuple):
    """Of one node, by model: its own requests in flight when each was sent, and milliseconds without the network."""

    node: str
    by_model: dict[Hashable, deque[tuple[float, float]]]

    def median_ms(self, model: Hashable, in_flight: float) -> float | None:
        """Of the answers with about as many in flight; None while there are too few."""
        seen = self.by_model.get(model, ())
        if len(seen) < ENOUGH:
            return None
        near = sorted(seen, key=lambda entry: abs(entry[0] - in_flight))[:NEAREST]
        return median([ms for _, ms in near])


class PrequalNet:
    """Prequal (``prequal``), with the predicted network added to a probe's latency: a fair rival across a WAN.

    A node's newest report stands for the answer of an asynchronous probe. Latency is the paper's median over recent
    answers with a similar number in flight, of our own answers less the predicted network; before there are enough,
    what the node's own figures say of that many requests.
    """

    at_once_ms = 0.0

    def __init__(self, dials: Dials = Dials()) -> None:  # noqa: B008 - frozen
        self.pool = Pool(dials)
        self._answers: dict[int, Answers] = {}
        self._sent: dict[tuple[int, Ask], float] = {}

    def choose(self, ask: Ask, outlook: Outlook, now: float, rng: Random, without: Sequence[int]) -> Decision:
        found, pool = Candidates.of(ask, outlook, now, without), self.pool
        if not found.slots:
            return found.none()
        service, row = outlook.of(ask.model)
        network: Column = found.estimates.network

        def latency_ms(probe: Probe) -> float:
            slot, answers = probe.slot, self._answers.get(probe.slot)
            ms = answers.median_ms(ask.model, probe.in_flight) if answers is not None else None
            return float(network[slot] + (service[slot] + row[slot] * probe.in_flight if ms is None else ms))

        pool.expire(found.slots, now)
        picked = pool.pick(latency_ms)
        chosen = rng.choice(found.slots) if picked is None else picked.slot
        self._note(chosen, ask, outlook)
        pool.remove(latency_ms, rng)
        pool.probe(found.slots, lambda slot: _in_flight(outlook, slot), now, rng)
        return found.take(chosen, "drawn: too few probes" if picked is None else "the best of the probed")

    def _note(self, slot: int, ask: Ask, outlook: Outlook) -> None:
        """Remember what the answer must be compared with."""
        in_flight = self.pool.use(slot)
        self._sent[slot, ask] = float(outlook.in_flight(slot)) if in_flight is None else in_flight
        if len(self._sent) > MAX_SENT:
            del self._sent[next(iter(self._sent))]
        answers = self._answers.get(slot)
        if answers is None or answers.node != outlook.names[slot]:
            self._answers[slot] = Answers(outlook.names[slot], {})

    def answered(self, slot: int, ask: Ask, seen: Seen, now: float) -> None:
        in_flight = self._sent.pop((slot, ask), None)
        if in_flight is None:
            return
        counted = seen.counted_ms(ask.given_ms) - (seen.network_ms if seen.kind == "answer" else 0.0)
        by_model = self._answers[slot].by_model
        if ask.model not in by_model and len(by_model) >= MAX_MODELS:
            by_model.clear()
        by_model.setdefault(ask.model, deque(maxlen=HISTORY)).append((in_flight, max(counted, 0.0)))


def _in_flight(outlook: Outlook, slot: int) -> float:
    """What a probe of the node would answer; this very process is not reported of, all it runs is noted by us."""
    return float(outlook.in_flight(slot) if outlook.links[slot] is None else outlook.reported_in_flight[slot])


RULES: dict[str, Callable[[], Rule]] = {
    "ours": Ours,
    "peak-ewma": PeakEwma,
    "prequal-net": lambda: PrequalNet(Dials(probes=6.0, quantile=0.95, share=1.0)),
    "local-only": LocalOnly,
}
"""The rivals as they did best in the simulator (tests/bench/offload/tuned.json)."""
