"""The same arrivals in the simulator, which is given the overheads that were measured.

The deadline is shorter by what a local request costs beyond its run, for the client's clock begins before the door's; a
hop costs what it was measured to cost beyond that. The wires have no jitter, and requests that go up side by side share
them, as their connections do. Not here: the simulator.
"""

from __future__ import annotations

from dataclasses import replace

from tests.bench.offload import lineup
from tests.bench.offload.device import Attempt
from tests.bench.offload.environment import Environment
from tests.bench.offload.metrics import measure
from tests.bench.offload.network import LAN_BYTES_S, Network, Pipe
from tests.bench.offload.world import Mesh
from tests.bench.reality.overhead import Overhead
from tests.bench.reality.run import Figures, route_shares
from tests.bench.reality.scenarios import Case
from tests.bench.reality.sharing import SharedWire


class _Instant(Pipe):
    """Takes no time: what it carries is carried by a shared wire behind it."""

    def send(self, now: float, nbytes: int, deadline_s: float) -> float | None:
        return now


class _Wires(Network):
    """As the testbed's are."""

    def __init__(self, environment: Environment, overhead: Overhead) -> None:
        super().__init__(environment)
        self.up = [_Instant(pipe.trace) for pipe in self.up]
        transfer_ms = environment.scenario.models[0].nbytes / LAN_BYTES_S * 1e3
        self._lan_s = max(overhead.lan_ms - overhead.local_ms - transfer_ms, 0.0) / 1e3
        self._wan_s = max(overhead.wan_ms - overhead.local_ms, 0.0) / 1e3 + environment.scenario.wan.rtt_ms / 1e3

    def usual_delay_s(self, origin: int, node: int) -> float:
        if origin == node:
            return 0.0
        return (self._wan_s if self.is_wan(origin, node) else self._lan_s) / 2

    def delay_s(self, origin: int, node: int) -> float:
        return self.usual_delay_s(origin, node)


class _Mesh(Mesh):
    """Its ways up are shared; notes where requests ran that were answered in time."""

    def __init__(self, environment: Environment, policy: str, overhead: Overhead) -> None:
        super().__init__(environment, lineup.factory(policy))
        self.network = _Wires(environment, overhead)
        self.wires = [SharedWire(pipe.trace.rate(0.0), self._through) for pipe in self.network.up]
        self.ran = [""] * len(environment.requests)
        self._carried: set[Attempt] = set()

    def wan_mb(self) -> float:
        return (sum(wire.carried for wire in self.wires) + self.network.wan_bytes()) / 1e6

    def _wire(self, attempt: Attempt) -> SharedWire | None:
        origin = attempt.request.origin
        far = attempt.node != origin and self.network.is_wan(origin, attempt.node)
        return self.wires[self.environment.nodes[origin].site] if far else None

    def _reach(self, attempt: Attempt) -> None:
        wire = self._wire(attempt)
        if wire is None or attempt in self._carried or attempt.done:
            super()._reach(attempt)
            return
        wire.begin(attempt, attempt.request.nbytes, self.now)
        self._look(wire)

    def _look(self, wire: SharedWire) -> None:
        self._push(wire.next_s(), self._advance, wire)

    def _advance(self, wire: SharedWire) -> None:
        """Called more often than something is through: for a time that was foreseen before others began."""
        before = wire.next_s()
        wire.advance(self.now)
        if before <= self.now:
            self._look(wire)

    def _through(self, transfer: object) -> None:
        assert isinstance(transfer, Attempt)
        self._carried.add(transfer)
        self._reach(transfer)

    def _expire(self, attempt: Attempt) -> None:
        wire = self._wire(attempt)
        if wire is not None and not attempt.done:
            wire.give_up(attempt, self.now)
            self._look(wire)
        super()._expire(attempt)

    def _answer(self, attempt: Attempt) -> None:
        super()._answer(attempt)
        request = attempt.request
        if self.outcomes[request.id] == "good":
            tier = self.devices[attempt.node].node.tier
            self.ran[request.id] = "cloud" if tier == "cloud" else "local" if attempt.node == request.origin else "peer"


def simulate(case: Case, seed: int, policy: str, overhead: Overhead) -> Figures:
    """One run in virtual time."""
    models = tuple(replace(m, slo_ms=m.slo_ms - overhead.local_ms) for m in case.scenario.models)
    mesh = _Mesh(replace(case, scenario=replace(case.scenario, models=models)).environment(seed), policy, overhead)
    found = measure(mesh.run())
    p50_ms, p99_ms = (found[name] + overhead.local_ms for name in ("p50_ms", "p99_ms"))
    return Figures(found["attainment"], p50_ms, p99_ms, mesh.wan_mb(), route_shares(mesh.ran))
