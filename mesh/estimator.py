"""When would a node answer? Predicted queue wait, service time and network time of one candidate.

The first estimator: what a node reported, drained by the age of the report, plus what this router sent there since;
bandwidth and round trip learned per link. Pure: ``now`` (seconds of a monotonic clock) is an argument. Not here: which
candidate to take (``balancer``), who is a candidate (``membership`` and the router), sending (the hops).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Literal, NamedTuple

import msgspec

from mesh.messages import ModelLoad
from mesh.values import Route

Path = Literal["local", "http", "bus"]
"""How a request gets there: not at all, to the node's own HTTP door, or over the bus."""

LOCAL_MS = 0.1
"""What handing a request to this very process costs."""

FADE_S = 5.0
"""Time constant with which an idle link's bandwidth returns to its prior: one bad sample bans nobody for good."""

SAMPLE_BYTES = 16 * 1024
"""Fewer bytes than this say nothing about bandwidth, only about the round trip."""

SLOWER, FASTER = 0.5, 0.1
"""Weights of a bandwidth sample below and above the estimate: slowness is believed at once, recovery gradually."""

MAX_BYTES_PER_MS = 1.25e6
"""10 Gbit/s: the highest bandwidth that a sample may claim."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What a link is taken for until it was measured."""

    rtt_ms: float
    bytes_per_ms: float


LAN = Prior(rtt_ms=1.0, bytes_per_ms=50_000.0)
"""A direct hop in a site: 400 Mbit/s."""

BUS = Prior(rtt_ms=10.0, bytes_per_ms=6_250.0)
"""Through the bus or over a WAN: 50 Mbit/s."""


@dataclass(slots=True)
class Link:
    """What is known of one way to one node; the hop that uses it keeps it up to date.

    ``rtt_ms`` and ``rttvar_ms`` follow Jacobson's rule (RFC 6298: gains 1/8 and 1/4), bandwidths are in bytes per ms,
    ``queued_bytes`` were sent and not yet answered. Build one with :meth:`lan` or :meth:`bus`.
    """

    prior: Prior = LAN
    rtt_ms: float = LAN.rtt_ms
    rttvar_ms: float = LAN.rtt_ms / 2
    up_bytes_per_ms: float = LAN.bytes_per_ms
    down_bytes_per_ms: float = LAN.bytes_per_ms
    queued_bytes: int = 0
    updated_at: float = 0.0
    measured: bool = False
    """Whether ``rtt_ms`` is a measurement yet; the first one replaces the prior."""

    @classmethod
    def of(cls, prior: Prior) -> Link:
        return cls(prior, prior.rtt_ms, prior.rtt_ms / 2, prior.bytes_per_ms, prior.bytes_per_ms)

    @classmethod
    def lan(cls) -> Link:
        return cls.of(LAN)

    @classmethod
    def bus(cls) -> Link:
        return cls.of(BUS)

    def network_ms(self, nbytes: int, reply_bytes: int, now: float) -> float:
        """Predicted time on the wire, both ways, of ``nbytes`` sent now behind everything queued."""
        up, down = self._rates(now)
        return self.rtt_ms + (self.queued_bytes + nbytes) / up + reply_bytes / down

    def sent(self, nbytes: int, now: float) -> int:
        """Note a send; returns the bytes ahead of it, for ``answered(ahead=...)``."""
        self._settle(now)
        ahead = self.queued_bytes
        self.queued_bytes += nbytes
        return ahead

    def answered(
        self, sent_bytes: int, received_bytes: int, elapsed_ms: float, server_ms: float, now: float, ahead: int = 0
    ) -> None:
        """Learn from one answered request.

        ``elapsed_ms`` is by this node's clock from send to the whole reply, ``server_ms`` what the far node says it
        held the request, by its own: the difference is the network's, and no clock is compared with another.
        ``ahead`` is what :meth:`sent` returned; without it the bandwidth of a link shared by concurrent requests is
        underestimated.
        """
        self._settle(now)
        self.queued_bytes = max(self.queued_bytes - sent_bytes, 0)
        network_ms = max(elapsed_ms - server_ms, 0.0)
        carried = ahead + sent_bytes
        transfer_ms = carried / self.up_bytes_per_ms + received_bytes / self.down_bytes_per_ms
        if max(carried, received_bytes) < SAMPLE_BYTES:
            self.pinged(max(network_ms - transfer_ms, 0.0), now)
            return
        # What is not round trip was transfer; where the two cannot be told apart, a tenth at least.
        slowdown = max(network_ms - self.rtt_ms, network_ms / 10, 1e-3) / transfer_ms
        if carried >= SAMPLE_BYTES:
            self.up_bytes_per_ms = _blend(self.up_bytes_per_ms, self.up_bytes_per_ms / slowdown)
        if received_bytes >= SAMPLE_BYTES:
            self.down_bytes_per_ms = _blend(self.down_bytes_per_ms, self.down_bytes_per_ms / slowdown)

    def failed(self, sent_bytes: int, now: float) -> None:
        """A request ended without an answer; nothing is learned but that its bytes are no longer under way."""
        self._settle(now)
        self.queued_bytes = max(self.queued_bytes - sent_bytes, 0)

    def pinged(self, rtt_ms: float, now: float) -> None:
        """Learn one round trip of a small message, without the far node's own time."""
        self._settle(now)
        if not self.measured:
            self.measured = True
            self.rtt_ms, self.rttvar_ms = rtt_ms, rtt_ms / 2
            return
        self.rttvar_ms += (abs(rtt_ms - self.rtt_ms) - self.rttvar_ms) / 4
        self.rtt_ms += (rtt_ms - self.rtt_ms) / 8

    def _rates(self, now: float) -> tuple[float, float]:
        """Bandwidth up and down, faded towards the prior while nothing is under way."""
        up, down, prior = self.up_bytes_per_ms, self.down_bytes_per_ms, self.prior.bytes_per_ms
        if self.queued_bytes or (up == prior and down == prior):
            return up, down
        kept = exp(-max(now - self.updated_at, 0.0) / FADE_S)
        return prior + (up - prior) * kept, prior + (down - prior) * kept

    def _settle(self, now: float) -> None:
        self.up_bytes_per_ms, self.down_bytes_per_ms = self._rates(now)
        self.updated_at = now


def _blend(rate: float, sample: float) -> float:
    sample = min(sample, MAX_BYTES_PER_MS)
    return rate + (sample - rate) * (SLOWER if sample < rate else FASTER)


class Candidate(msgspec.Struct, frozen=True):
    """One node that may run a request: it holds the very model asked for, and the router has not excluded it.

    ``ready`` is False for a suspect node, which is taken only when nothing else is left. ``wait_ms`` and ``model`` are
    what it reported at ``heard_at``; ``own_ms`` is the work this router has sent there since and that is unfinished.
    ``link`` is None for this very process.
    """

    node: str
    route: Route
    path: Path
    ready: bool
    model: ModelLoad
    wait_ms: float
    heard_at: float
    own_ms: float = 0.0
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs, as far as routing goes: ``left_ms`` until its deadline, ``nbytes`` to carry there."""

    left_ms: float
    nbytes: int
    reply_bytes: int = 4096
    priority: int = 0


class Estimate(NamedTuple):
    """Predicted milliseconds by part. A tuple, because one is made per candidate and request."""

    network_ms: float
    wait_ms: float
    service_ms: float

    @property
    def total_ms(self) -> float:
        return self.network_ms + self.wait_ms + self.service_ms


def estimate(candidate: Candidate, ask: Ask, now: float, prior_service_ms: float) -> Estimate:
    """Predict one candidate; ``prior_service_ms`` stands in where the node has not yet run the model.

    The reported wait drains while the report ages. What this router sent there since is not in the report and is still
    unfinished, so it counts in full: without it every router herds to the node that last looked idle.
    """
    link, model = candidate.link, candidate.model
    age_ms = (now - candidate.heard_at) * 1e3
    reported = candidate.wait_ms - age_ms if age_ms > 0.0 else candidate.wait_ms
    own = candidate.own_ms
    return Estimate(
        LOCAL_MS if link is None else link.network_ms(ask.nbytes, ask.reply_bytes, now),
        own + reported if reported > 0.0 else own,
        model.service_ms if model.service_ms > 0.0 else prior_service_ms,
    )


class Dispatches:
    """This router's unfinished requests per node: the part of a node's load that its last report cannot know yet."""

    def __init__(self) -> None:
        self._sent: dict[str, dict[int, tuple[float, float]]] = {}
        self._last = 0

    def add(self, node: str, service_ms: float, at: float) -> int:
        """Note a request sent at ``at`` that takes ``service_ms`` there; returns the token for :meth:`done`."""
        self._last += 1
        self._sent.setdefault(node, {})[self._last] = (at, service_ms)
        return self._last

    def done(self, node: str, token: int) -> None:
        """The request ended, however it did; a second call does nothing."""
        sent = self._sent.get(node)
        if sent is not None and sent.pop(token, None) is not None and not sent:
            del self._sent[node]

    def since(self, node: str, heard_at: float) -> float:
        """Milliseconds of unfinished work sent to ``node`` at or after ``heard_at``, when it last reported.

        On a link with a long round trip pass ``heard_at`` less that round trip: what was sent within it had not
        arrived when the node took its figures.
        """
        total = 0.0
        for at, service_ms in reversed(self._sent.get(node, {}).values()):
            if at < heard_at:
                break
            total += service_ms
        return total

    def in_flight(self, node: str) -> int:
        """Unfinished requests at ``node``: what is lost at once when it dies."""
        return len(self._sent.get(node, ()))
