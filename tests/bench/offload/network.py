"""The wires between nodes: pipes that carry bytes one request after the other, and the delay of the way.

Not here: what a router believes of them (`mesh.estimator.Link`), when things happen (world.py).
"""

from __future__ import annotations

from math import exp

from tests.bench.offload.environment import Environment, Trace, stream

LAN_BYTES_S = 50e6
LAN_MS = 1.0
"""Round trip in a site."""
DELAY_SIGMA = 0.1
"""Of the log-normal jitter of a way over the WAN."""


class Pipe:
    """First come, first served. A sender gives up at its deadline, before its turn or in the middle of it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.free_s = 0.0
        """When all that was sent so far is through."""
        self.carried = 0.0
        """Bytes."""

    def finish(self, now: float, nbytes: int) -> float:
        """When the last byte of a request sent now would be through."""
        return self.trace.finish(max(now, self.free_s), nbytes)

    def send(self, now: float, nbytes: int, deadline_s: float) -> float | None:
        """When the last byte is through; None if the sender gives up."""
        begin = max(now, self.free_s)
        if begin >= deadline_s:
            return None
        end = self.trace.finish(begin, nbytes)
        if end > deadline_s:
            self.free_s = deadline_s
            self.carried += self.trace.carried(deadline_s) - self.trace.carried(begin)
            return None
        self.free_s = end
        self.carried += nbytes
        return end


class Network:
    """Who reaches whom, and how. A site has one way up and one down to the cloud, a node one interface to its site."""

    def __init__(self, environment: Environment) -> None:
        self.up = [Pipe(trace) for trace in environment.up]
        """By site."""
        self.down = [Pipe(trace) for trace in environment.down]
        self.lan = [Pipe(Trace([LAN_BYTES_S])) for _ in environment.nodes]
        """By node."""
        self._site = [node.site for node in environment.nodes]
        self._rtt_s = environment.scenario.wan.rtt_ms / 1e3
        self._luck = stream(environment.seed, "delay")
        cloud = [node.index for node in environment.nodes if node.tier == "cloud"]
        self.reachable = {
            origin: [
                origin,
                *(n for n in environment.edges if self._site[n] == self._site[origin] and n != origin),
                *cloud,
            ]
            for origin in environment.edges
        }
        """From each edge node: itself, its site, the cloud."""

    def is_wan(self, origin: int, node: int) -> bool:
        return self._site[origin] != self._site[node]

    def way(self, origin: int, node: int) -> Pipe:
        return self.up[self._site[origin]] if self.is_wan(origin, node) else self.lan[origin]

    def way_back(self, origin: int, node: int) -> Pipe:
        return self.down[self._site[origin]] if self.is_wan(origin, node) else self.lan[node]

    def usual_delay_s(self, origin: int, node: int) -> float:
        """One way without the transfer, and without jitter."""
        return 0.0 if origin == node else self._rtt_s / 2 if self.is_wan(origin, node) else LAN_MS / 2e3

    def delay_s(self, origin: int, node: int) -> float:
        """One way without the transfer."""
        usual_s = self.usual_delay_s(origin, node)
        return usual_s * exp(self._luck.gauss(0.0, DELAY_SIGMA)) if self.is_wan(origin, node) else usual_s

    def wan_bytes(self) -> float:
        return sum([pipe.carried for pipe in self.up + self.down])
