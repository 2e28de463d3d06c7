"""Whether others come along: how many requests of a model arrive in the same turn of the event loop, of late.

Not here: what is done with those that come (``executor``, ``batching``).
"""

from __future__ import annotations

from edge.served import Item, Served

GATHER = 0.5
"""With this much company of late, a request waits for the end of the loop's turn before it runs."""
LEARN = 0.2


class Company:
    """Counts the arrivals of a turn; ``Served.company`` is what it has learned."""

    def __init__(self) -> None:
        self._arrivals: dict[Served, int] = {}

    def comes(self, item: Item) -> None:
        self._arrivals[item.served] = self._arrivals.get(item.served, 0) + 1

    def turn_ends(self) -> None:
        for served, count in self._arrivals.items():
            served.company += LEARN * (count - 1 - served.company)
        self._arrivals.clear()


def is_worth_waiting_for(item: Item) -> bool:
    """Whether others usually come, and running together pays."""
    served = item.served
    return served.company > GATHER and served.latency.best_rows(item.shapes, served.batching.max_rows) > 1
