"""Which links share a wire: on a site each node has its own way, everything beyond goes through one uplink.

Seen from an edge node its own site's uplink is the narrow part of every way that leaves the site, whatever is at the
other end; seen from the cloud it is that of the site at the other end. Not here: what a wire or a link knows
(``link``), which nodes there are (``ways``).
"""

from __future__ import annotations

from mesh.link import WAN, Link, Wire
from mesh.messages import Report
from mesh.neighbours import Door
from mesh.pins import Place


class Wires:
    """``here`` is where this router stands."""

    def __init__(self, here: Place) -> None:
        self._here = here
        self._shared: dict[str, tuple[Wire, Wire]] = {}
        """Up and down by site."""
        self._bus_links: dict[str, Link] = {}

    def link(self, report: Report, door: Door | None) -> Link:
        """The way to a node, over its door or the bus."""
        if report.site == self._here.site and door is not None:
            return door.link
        up, down = self._shared.get(self._narrow(report)) or self._new(self._narrow(report))
        known = door.link if door is not None else self._bus_links.get(report.node)
        if known is None or known.up is not up:
            measured = known
            known = Link(WAN, up, down)
            if measured is not None and measured.measured:
                known.pinged(measured.rtt_ms)
        if door is not None:
            door.link = known
        else:
            self._bus_links[report.node] = known
        return known

    def forget(self, node: str) -> None:
        self._bus_links.pop(node, None)

    def told(self, report: Report, heard_s: float) -> None:
        """A neighbour of the site said how much of the uplink it uses itself."""
        if self._here.tier == "edge" and report.site == self._here.site and report.tier == "edge":
            shared = self._shared.get(self._here.site)
            if shared is not None:
                shared[0].told(report.node, report.uplink_bytes, heard_s)

    def uplink_bytes(self, now: float) -> int:
        """What this node has under way to other sites."""
        shared = self._shared.get(self._here.site) if self._here.tier == "edge" else None
        return int(shared[0].remaining(now)) if shared is not None else 0

    def _narrow(self, report: Report) -> str:
        return self._here.site if self._here.tier == "edge" else report.site

    def _new(self, site: str) -> tuple[Wire, Wire]:
        pair = self._shared[site] = Wire(WAN.bytes_per_ms), Wire(WAN.bytes_per_ms)
        return pair
