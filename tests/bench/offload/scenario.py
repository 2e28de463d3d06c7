"""What a scenario is made of: boxes, models, load, links, heat, faults, reports. Values only.

Not here: the scenarios themselves (scenarios.py), drawing their randomness (environment.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Profile = tuple[float, float, int]
"""A run of n rows takes a + c * n milliseconds at usual speed: (a, c, most rows)."""


@dataclass(frozen=True)
class Model:
    """What is asked for. `slo_ms` is the deadline of each request, `size` in units of a node's `memory`."""

    name: str
    slo_ms: float
    nbytes: int
    reply_bytes: int = 4096
    load_s: float = 0.0
    size: float = 1.0


@dataclass(frozen=True)
class Load:
    """The arrivals. `rho` is the mean rate over what all edge nodes can do in their best batches."""

    rho: float
    cv: float = 1.0
    """Coefficient of variation of the gamma distributed gaps of each origin; 1 is a Poisson stream."""
    zipf: float = 0.9
    skew: float = 0.0
    """Weights of the sites fall as rank to this power."""
    swing: float = 1.0
    """Peak over trough of one sine wave over the whole run."""
    spikes: tuple[tuple[float, float, float, int], ...] = ()
    """(begin as a share of the run, seconds, factor, site or -1 for all)."""
    window_s: float = 0.0
    """Rate and cv are drawn anew for each origin and window: log-normal with `window_cv`, cv up to `cv`."""
    window_cv: float = 0.0
    priorities: tuple[float, ...] = ()
    """Shares of the classes 1, 2, ...; empty where no request has one."""


@dataclass(frozen=True)
class Wan:
    """A site's way to the cloud: log-normal AR(1) by the second, down `down` times as wide as up."""

    mbit: float = 50.0
    cv: float = 0.3
    rtt_ms: float = 40.0
    down: float = 4.0
    outages: tuple[tuple[float, float, int], ...] = ()
    """(begin as a share of the run, seconds, site or -1 for all)."""
    outage_share: float = 0.0
    """Share of time in random outages of `outage_s`."""
    outage_s: float = 2.0


@dataclass(frozen=True)
class Heat:
    """Throttling: events at random, on each node or on a whole site at once."""

    every_s: float
    lasts_s: tuple[float, float] = (5.0, 10.0)
    factor: tuple[float, float] = (1.5, 2.5)
    by_site: bool = False


@dataclass(frozen=True)
class Fault:
    """From `at` (a share of the run) on for `lasts_s`: a node is gone, or fails `share` of its requests, or is worse.

    `fast-fail` answers an error at once, `slow-fail` after a run of five times the usual length. `slow` makes its runs
    `factor` times as long, `link` its site's way up and down so many times as narrow (by whole seconds), and one that
    does `lie` tells others that it is idle and `factor` times faster than it is.
    """

    kind: Literal["crash", "fast-fail", "slow-fail", "slow", "link", "lie"]
    node: int
    at: float
    lasts_s: float
    share: float = 1.0
    factor: float = 10.0


@dataclass(frozen=True)
class Reports:
    """How often nodes tell of themselves: to their site, and over the bus (cloud nodes, central routers)."""

    lan_s: float = 0.25
    bus_s: float = 1.0
    min_s: float = 0.25
    on_change: bool = True
    on_reply: bool = True
    exact: bool = False
    """The whole queue in place of a histogram by time left."""


@dataclass(frozen=True)
class Misfit:
    """How far the believed profiles are from the true ones."""

    speed: float = 0.0
    """Sigma of the log-normal error of each node and model."""
    slope: float = 1.0
    """The true cost per row over the believed one, the cost of a single row being kept."""
    straggler_share: float = 0.0
    straggler: float = 3.0


@dataclass(frozen=True)
class Scenario:
    """A mesh and what happens to it. Nodes are numbered site by site, the cloud's last."""

    name: str
    about: str
    models: tuple[Model, ...]
    sites: tuple[tuple[str, ...], ...]
    """Classes of boxes, by site."""
    cloud: tuple[str, ...]
    boxes: dict[str, dict[str, Profile]]
    load: Load
    wan: Wan = Wan()
    heat: Heat | None = None
    faults: tuple[Fault, ...] = ()
    reports: Reports = Reports()
    misfit: Misfit = Misfit()
    memory: float = 0.0
    """Room for models on an edge node; 0 where all of them fit."""
    routers: int = 0
    """0 is one for each edge node. Fewer are central: none knows any node better than its reports say."""
    noise: float = 0.05
    """Sigma of the log-normal noise of a run."""
    seconds: float = 40.0
    settled: float = 0.0
    """Share of the run at which the last disturbance is over, for the recovery time; 0 where that is not asked."""
