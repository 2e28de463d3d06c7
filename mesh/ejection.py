"""Which nodes are left alone for a while because requests there fail: errors of execution and transport in a row.

Deadlines that passed and refusals say nothing bad of a node and count for nothing (DESIGN D16; policies that eject for
them turn an overload into an outage). Pure: ``now`` (seconds of a monotonic clock) is an argument. Not here: liveness
(``membership``), what errors cost in predictions (``residual``). Nobody tells of the router's own node: it is never
ejected.
"""

from __future__ import annotations

from dataclasses import dataclass

ERRORS = 5
"""In a row, until a node is left alone."""
FIRST_S = 2.0
LONGEST_S = 60.0
"""A node is left alone for FIRST_S, and for twice as long each time it fails again, up to LONGEST_S."""
TIMES = 6
"""Ejections after which the longest time is reached; more are not counted."""
HEALTHY_S = 10.0
"""So long in health and one ejection less counts, as in Envoy."""
MOST = 0.5
"""Share of the peers that may be ejected at a time: where most fail, the fault is not theirs."""
TRIAL_S = 60.0
"""A trial that came to no end counts as ended after so long."""
_NOBODY: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Trouble:
    errors: int = 0
    times: int = 0
    """Ejections that count."""
    since: float = 0.0
    until: float = 0.0
    healthy_at: float = 0.0
    """Since when it works again, after the last ejection."""
    trial_at: float | None = None
    """When the request was sent that tries whether the node works again."""

    @property
    def is_out(self) -> bool:
        return self.errors >= ERRORS

    def trying(self, now: float) -> bool:
        return self.trial_at is not None and now - self.trial_at < TRIAL_S

    def held_against(self, now: float) -> int:
        """Ejections that health has not made good."""
        return max(self.times - int(max(now - self.healthy_at, 0.0) / HEALTHY_S), 0)

    def eject(self, now: float, times: int) -> None:
        self.times = min(times, TIMES)
        self.until = now + min(FIRST_S * 2.0 ** (self.times - 1), LONGEST_S)
        self.since, self.trial_at = now, None


class Ejection:
    """Of one router. Only nodes in trouble are remembered, and for a while those that were ejected."""

    def __init__(self) -> None:
        self._trouble: dict[str, _Trouble] = {}

    def sent(self, node: str, now: float) -> None:
        """A request goes there; after an ejection it is the trial."""
        trouble = self._trouble.get(node)
        if trouble is not None and trouble.is_out:
            trouble.trial_at = now

    def failed(self, node: str, now: float) -> None:
        """A request met an error of execution or transport there."""
        trouble = self._trouble.setdefault(node, _Trouble())
        trouble.errors += 1
        if trouble.errors == ERRORS:
            trouble.eject(now, trouble.held_against(now) + 1)
        elif trouble.trial_at is not None:
            early = trouble.trial_at < trouble.until  # asked because too many failed: it had no time to recover
            trouble.eject(now, trouble.times if early else trouble.times + 1)

    def succeeded(self, node: str) -> None:
        """A request was answered there."""
        trouble = self._trouble.get(node)
        if trouble is None:
            return
        if not trouble.times:
            del self._trouble[node]
            return
        if trouble.is_out:
            trouble.healthy_at = trouble.until if trouble.trial_at is None else trouble.trial_at
        trouble.errors, trouble.trial_at = 0, None

    def neither(self, node: str) -> None:
        """A request ended that says neither: refused, too late, or its caller left."""
        trouble = self._trouble.get(node)
        if trouble is not None:
            trouble.trial_at = None

    def forget(self, node: str) -> None:
        self._trouble.pop(node, None)

    def ejected(self, now: float, peers: int) -> frozenset[str]:
        """Nodes that are not asked now, at most ``MOST`` of so many peers.

        Where it would be more, those come back that were ejected the longest ago, one trial at a time as far as that
        goes.
        """
        if not self._trouble:
            return _NOBODY
        out = []
        for node, trouble in list(self._trouble.items()):
            if trouble.is_out:
                trying = trouble.trying(now)
                if trying or now < trouble.until:
                    out.append((trying, trouble.since, node))
            elif not trouble.errors and not trouble.held_against(now):
                del self._trouble[node]
        if not out:
            return _NOBODY
        out.sort()
        return frozenset([node for _, _, node in out[max(len(out) - int(MOST * peers), 0) :]])
