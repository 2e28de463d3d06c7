"""What is known of the ways to other nodes: round trips, bandwidth, and the bytes under way. Learned from answers.

A :class:`Wire` carries bytes in one direction and may be shared: all that leaves a site goes through its one uplink. A
:class:`Link` is the way to one node and back: a round trip and two wires. Pure: ``now`` (seconds of a monotonic clock)
is an argument. Not here: how long the far node takes (``estimator``), sending (the hops).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf
from typing import NamedTuple

FADE_S = 5.0
"""Time constant with which an idle wire's bandwidth returns to its prior: one bad sample bans nobody for good."""

SAMPLE_BYTES = 16 * 1024
"""Fewer bytes than this say nothing about bandwidth, only about the round trip."""

SLOWER, FASTER = 0.5, 0.1
"""Weights of a bandwidth sample below and above the estimate: slowness is believed at once, recovery gradually."""

LEAP = 4.0
"""Times the estimate that a sample may be: where the bytes ahead were over-rated, samples are far too high."""

MAX_BYTES_PER_MS = 1.25e6
"""10 Gbit/s: the highest bandwidth that a sample may claim."""

MIN_BYTES_PER_MS = 1.0

PATIENCE_MS = 20.0
"""So long beyond its expected answer a request still counts as one of the usual late ones, not as a stalled wire."""


@dataclass(frozen=True, slots=True)
class Prior:
    """What a link is taken for until it was measured."""

    rtt_ms: float
    bytes_per_ms: float


LAN = Prior(rtt_ms=1.0, bytes_per_ms=50_000.0)
"""A direct hop in a site: 400 Mbit/s."""

WAN = Prior(rtt_ms=10.0, bytes_per_ms=6_250.0)
"""Through the bus or between sites: 50 Mbit/s."""


class Transfer(NamedTuple):
    """One request's bytes on a wire until it is answered."""

    sent_s: float
    carried: float
    """Its own bytes and those that were ahead of them."""
    beside_ms: float
    """What its answer was expected to take beside the transfer; infinite once it is known to be through."""


class Wire:
    """One direction of a way: bytes per millisecond, and what is under way."""

    __slots__ = ("_free_s", "_last", "_others", "_rate", "_soonest_s", "_updated_s", "own_bytes", "prior", "under_way")

    def __init__(self, prior: float) -> None:
        self.prior = prior
        self.under_way: dict[int, tuple[int, Transfer]] = {}
        """Bytes of requests that are not answered, in order of sending."""
        self.own_bytes = 0
        """Their sum."""
        self._free_s = 0.0
        """When all of them should be through, and the last of them if none went before."""
        self._soonest_s = 0.0
        self._rate = prior
        self._updated_s = 0.0
        self._last = 0
        self._others: dict[str, tuple[int, float]] = {}

    def rate(self, now: float) -> float:
        """Bytes per millisecond: what was learned, faded towards the prior while nothing is under way, and never more
        than the oldest transfer, if it is overdue, can have had."""
        if not self.under_way:
            if self._rate == self.prior:
                return self.prior
            kept = exp(-max(now - self._updated_s, 0.0) / FADE_S)
            return self.prior + (self._rate - self.prior) * kept
        return max(min(self._rate, self._most(now)), MIN_BYTES_PER_MS)

    def remaining(self, now: float) -> float:
        """Our own bytes that should not be through yet; all that are not answered, if the wire is stalled."""
        if not self.under_way:
            return 0.0
        if self._most(now) < inf:
            return float(self.own_bytes)
        return min(max(self._free_s - now, 0.0) * 1e3 * self._rate, float(self.own_bytes))

    def ahead(self, now: float) -> float:
        """Bytes that go before a new request: our own, and what the neighbours on the wire told of theirs."""
        total = self.remaining(now)
        if self._others:
            rate = self._rate * 1e3
            total += sum([max(nbytes - rate * (now - heard_s), 0.0) for nbytes, heard_s in self._others.values()])
        return total

    def _most(self, now: float) -> float:
        """Bytes per millisecond that the oldest transfer can have had at most, if it is overdue."""
        for _, transfer in self.under_way.values():
            if transfer.beside_ms < inf:
                return self._had(transfer, now)
        return inf

    def _had(self, transfer: Transfer, now: float) -> float:
        """The same of any; infinite where it is not overdue. Few bytes that are late do not ban many."""
        spent_ms = (now - transfer.sent_s) * 1e3 - transfer.beside_ms
        overdue = spent_ms > transfer.carried / self._rate + PATIENCE_MS
        return max(transfer.carried, SAMPLE_BYTES) / spent_ms if overdue else inf

    def told(self, neighbour: str, nbytes: int, now: float) -> None:
        """A neighbour on the same wire said how much it has under way there."""
        if nbytes > 0:
            self._others[neighbour] = nbytes, now
        else:
            self._others.pop(neighbour, None)

    def ms(self, nbytes: int, now: float) -> float:
        """Predicted transfer of a request sent now."""
        return (self.ahead(now) + nbytes) / self.rate(now)

    def sent(self, nbytes: int, beside_ms: float, now: float) -> int:
        """Note a request; returns the token for :meth:`ended`."""
        self._settle(now)
        self._last += 1
        self.under_way[self._last] = nbytes, Transfer(now, self.ahead(now) + nbytes, beside_ms)
        self.own_bytes += nbytes
        self._soonest_s = now + nbytes / self._rate / 1e3
        self._free_s = max(self._free_s - now, 0.0) + self._soonest_s
        return self._last

    def ended(self, token: int, now: float) -> Transfer | None:
        """The request's bytes are no longer under way."""
        self._settle(now)
        entry = self.under_way.pop(token, None)
        if entry is None:
            return None
        self.own_bytes -= entry[0]
        if not self.under_way:
            self._free_s = now
        return entry[1]

    def answered(self, token: int, through_s: float, now: float) -> Transfer | None:
        """As :meth:`ended`, by an answer to a request whose bytes must have been through at ``through_s``.

        What was sent before it and is no larger is through as well, for all transfers get the same share at worst:
        where such a one is overdue, its node hangs and not the wire. What was sent behind it began then.
        """
        if token not in self.under_way:
            return None
        nbytes, _ = self.under_way[token]
        behind = self.own_bytes - nbytes
        for earlier, (size, transfer) in self.under_way.items():
            if earlier >= token:
                break
            behind -= size
            if size <= nbytes:
                self.under_way[earlier] = size, transfer._replace(beside_ms=inf)
        self._free_s = min(self._free_s, max(through_s + behind / self._rate / 1e3, self._soonest_s))
        return self.ended(token, now)

    def failed(self, token: int, now: float) -> None:
        """As :meth:`ended`, without an answer: if it was overdue, there was no more bandwidth than that allows."""
        transfer = self.ended(token, now)
        if transfer is not None and transfer.carried >= SAMPLE_BYTES and (had := self._had(transfer, now)) < inf:
            self.learn(had)

    def used(self, since: float, now: float) -> None:
        """Something came over it whose bytes were not noted before: it did not fade meanwhile."""
        self._rate, self._updated_s = self.rate(since), now

    def learn(self, rate: float) -> None:
        """Move towards a measured bandwidth."""
        sample = min(max(rate, MIN_BYTES_PER_MS), MAX_BYTES_PER_MS, LEAP * self._rate)
        self._rate += (sample - self._rate) * (SLOWER if sample < self._rate else FASTER)

    def _settle(self, now: float) -> None:
        if not self.under_way:
            self._rate = self.rate(now)
        self._updated_s = now


class Link:
    """The way to one node and back; ``rtt_ms`` and ``rttvar_ms`` follow Jacobson's rule (RFC 6298: gains 1/8, 1/4)."""

    __slots__ = ("down", "measured", "prior", "rtt_ms", "rttvar_ms", "up")

    def __init__(self, prior: Prior = LAN, up: Wire | None = None, down: Wire | None = None) -> None:
        self.prior = prior
        self.rtt_ms, self.rttvar_ms = prior.rtt_ms, prior.rtt_ms / 2
        self.up = up or Wire(prior.bytes_per_ms)
        self.down = down or Wire(prior.bytes_per_ms)
        self.measured = False
        """Whether ``rtt_ms`` is a measurement yet; the first one replaces the prior."""

    def network_ms(self, nbytes: int, reply_bytes: int, now: float) -> float:
        """Predicted time on the wire, both ways, of ``nbytes`` sent now behind everything under way."""
        return self.rtt_ms + self.up.ms(nbytes, now) + reply_bytes / self.down.rate(now)

    def sent(self, nbytes: int, now: float, server_ms: float = 0.0) -> int:
        """Note a request that is expected to be at the far node for ``server_ms``; returns the token of its end."""
        return self.up.sent(nbytes, self.rtt_ms + server_ms, now)

    def answered(self, token: int, received_bytes: int, elapsed_ms: float, server_ms: float, now: float) -> None:
        """Learn from one answered request.

        ``elapsed_ms`` is by this node's clock from send to the whole reply, ``server_ms`` what the far node says it
        held the request, by its own: the difference is the network's, and no clock is compared with another.
        """
        transfer = self.up.answered(token, now - (self.rtt_ms + server_ms) / 1e3, now)
        if transfer is None:
            return
        self.down.used(transfer.sent_s, now)
        up, down = self.up.rate(now), self.down.rate(now)
        network_ms = max(elapsed_ms - server_ms, 0.0)
        transfer_ms = transfer.carried / up + received_bytes / down
        if max(transfer.carried, received_bytes) < SAMPLE_BYTES:
            self.pinged(max(network_ms - transfer_ms, 0.0))
            return
        # What is not round trip was transfer; where the two cannot be told apart, a tenth at least.
        slowdown = max(network_ms - self.rtt_ms, network_ms / 10, 1e-3) / transfer_ms
        if transfer.carried >= SAMPLE_BYTES:
            self.up.learn(up / slowdown)
        if received_bytes >= SAMPLE_BYTES:
            self.down.learn(down / slowdown)

    def failed(self, token: int, now: float) -> None:
        """A request ended without an answer."""
        self.up.failed(token, now)

    def pinged(self, rtt_ms: float) -> None:
        """Learn one round trip of a small message, without the far node's own time."""
        if not self.measured:
            self.measured = True
            self.rtt_ms, self.rttvar_ms = rtt_ms, rtt_ms / 2
            return
        self.rttvar_ms += (abs(rtt_ms - self.rtt_ms) - self.rttvar_ms) / 4
        self.rtt_ms += (rtt_ms - self.rtt_ms) / 8
