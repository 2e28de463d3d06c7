"""The scenarios S1 to S11, variants behind a dash (`S4-outage`), and sweeps of staleness and faults. Data only.

The boxes' profiles are of the order of published figures for detection and segmentation networks on a Jetson Orin Nano,
Orin NX, AGX Orin, a desktop GPU and a data centre GPU; no box was measured for them. Not here: what the fields mean
(scenario.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tests.bench.offload.scenario import (
    Fault,
    Heat,
    Load,
    Misfit,
    Model,
    Profile,
    Reports,
    Scenario,
    Wan,
)

BOXES: dict[str, dict[str, Profile]] = {
    "nano": {"detect": (8.0, 22.0, 4), "segment": (15.0, 75.0, 2)},
    "nx": {"detect": (7.0, 9.0, 8), "segment": (12.0, 34.0, 4)},
    "agx": {"detect": (6.0, 4.5, 8), "segment": (10.0, 16.0, 8)},
    "cloud": {"detect": (4.0, 0.9, 32), "segment": (6.0, 3.0, 32)},
}
DETECT = Model("detect", 150.0, 150_000)
SEGMENT = Model("segment", 400.0, 300_000)
MIXED = (("nano", "nano", "nx", "agx"), ("nano", "nx", "nx"), ("nano", "nx", "agx"))

MANY = tuple(
    Model(f"m{rank}", slo, nbytes, load_s=load_s, size=size)
    for rank, (slo, nbytes, load_s, size) in enumerate(
        [
            (150.0, 100_000, 0.3, 1.0),
            (400.0, 200_000, 1.0, 2.0),
            (300.0, 100_000, 0.5, 1.0),
            (500.0, 200_000, 1.5, 2.0),
            (800.0, 300_000, 3.0, 3.0),
            (300.0, 100_000, 0.3, 1.0),
            (500.0, 150_000, 1.0, 2.0),
            (800.0, 200_000, 2.0, 3.0),
        ]
    )
)
"""For memory that does not hold them all; the odd ones run as `segment` does, the even ones as `detect`."""


def _boxes_for_many() -> dict[str, dict[str, Profile]]:
    kinds = ("detect", "segment")
    return {box: {model.name: of[kinds[rank % 2]] for rank, model in enumerate(MANY)} for box, of in BOXES.items()}


_BASE = Scenario("", "", (DETECT, SEGMENT), MIXED, ("cloud", "cloud"), BOXES, Load(rho=0.5), heat=Heat(every_s=200.0))
AGES_S = (0.05, 0.25, 1.0, 3.0, 10.0)
"""Of reports, for the sweep of staleness."""
_BURSTS = Load(rho=0.5, cv=4.0, skew=0.7)

_ALL = [
    replace(
        _BASE,
        name="S1",
        about="Poisson on ten equal boxes",
        sites=(("nx",) * 4, ("nx",) * 3, ("nx",) * 3),
        load=Load(rho=0.6),
        heat=None,
    ),
    replace(_BASE, name="S2", about="gamma CV 4, skewed sites", load=_BURSTS, heat=None),
    *(
        replace(_BASE, name=f"S2-cv{cv}", about=f"gamma CV {cv}", load=replace(_BURSTS, cv=float(cv)), heat=None)
        for cv in (1, 2, 8)
    ),
    replace(
        _BASE,
        name="S3",
        about="a day of 3:1 with spikes of 10x on one site",
        load=Load(rho=0.1, swing=3.0, spikes=((0.2, 1.0, 10.0, 1), (0.45, 1.0, 10.0, 0), (0.7, 2.0, 10.0, 2))),
        settled=0.75,
    ),
    replace(
        _BASE,
        name="S4",
        about="LTE of 6 Mbit/s with outages",
        wan=Wan(mbit=6.0, cv=0.6, rtt_ms=60.0, outage_share=0.08),
    ),
    replace(_BASE, name="S4-wired", about="wired 50 Mbit/s", wan=Wan(cv=0.2)),
    replace(
        _BASE, name="S4-drive", about="LTE from a vehicle", wan=Wan(mbit=1.9, cv=0.88, rtt_ms=80.0, outage_share=0.15)
    ),
    replace(_BASE, name="S4-outage", about="the WAN gone for 10 s", wan=Wan(outages=((0.4, 10.0, -1),)), settled=0.65),
    replace(_BASE, name="S5", about="whole sites throttle", heat=Heat(every_s=15.0, by_site=True)),
    replace(
        _BASE,
        name="S6",
        about="a crash, a fast-failing sinkhole, one that fails most, one that fails slowly",
        heat=None,
        load=Load(rho=0.4),
        faults=(
            Fault("crash", 3, 0.1, 6.0),
            Fault("fast-fail", 6, 0.3, 6.0),
            Fault("fast-fail", 9, 0.5, 6.0, 0.6),
            Fault("slow-fail", 2, 0.7, 6.0),
        ),
        settled=0.87,
    ),
    replace(
        _BASE,
        name="S7",
        about="one report a second, none on replies",
        reports=Reports(lan_s=1.0, bus_s=1.0, on_change=False, on_reply=False),
    ),
    *(
        replace(
            _BASE,
            name=f"S7-{age}ms-{routers}r",
            about=f"{routers} routers, a report each {age} ms, none on replies",
            reports=Reports(lan_s=age / 1e3, bus_s=age / 1e3, on_change=False, on_reply=False),
            routers=routers,
        )
        for age in (50, 250, 5000)
        for routers in (1, 10, 100)
    ),
    replace(
        _BASE,
        name="S7-none",
        about="no reports but the first",
        reports=Reports(lan_s=float("inf"), bus_s=float("inf"), on_change=False, on_reply=False),
    ),
    replace(
        _BASE,
        name="S8",
        about="eight models, room for a third of them, loads of 0.3 to 3 s",
        models=MANY,
        boxes=_boxes_for_many(),
        memory=5.0,
        load=Load(rho=0.4, cv=2.0),
    ),
    replace(
        _BASE,
        name="S9",
        about="1.5 times what the edge can do, three classes",
        load=Load(rho=1.5, cv=2.0, priorities=(0.2, 0.5, 0.3)),
    ),
    replace(
        _BASE,
        name="S10",
        about="profiles wrong by 30 %, rows dearer than believed, stragglers",
        load=replace(_BURSTS, cv=2.0),
        misfit=Misfit(speed=0.3, slope=1.15, straggler_share=0.03),
    ),
    replace(
        _BASE,
        name="S11",
        about="rate and CV drawn anew each 5 s, as traces of functions are replayed",
        load=Load(rho=0.45, cv=6.0, window_s=5.0, window_cv=0.6),
    ),
]

_FAULT = replace(_BASE, load=Load(rho=0.6), heat=None)


def _bad(kind: Literal["slow", "link", "lie"], node: int) -> tuple[Fault, ...]:
    return (Fault(kind, node, at=0.3, lasts_s=18.0),)


_ALL += [
    *(
        replace(
            _BASE,
            name=f"stale-{age:g}s",
            about=f"a report each {age:g} s, none on replies",
            reports=Reports(lan_s=age, bus_s=age, on_change=False, on_reply=False),
            load=replace(_BURSTS, cv=2.0),
            heat=Heat(every_s=60.0),
        )
        for age in AGES_S
    ),
    replace(
        _BASE, name="fault-five-routers", about="five central routers choose at once", load=Load(rho=0.6), routers=5
    ),
    replace(
        _FAULT,
        name="fault-lie",
        about="the fastest box of a site says that it is idle and ten times as fast",
        faults=_bad("lie", 3),
    ),
    replace(_FAULT, name="fault-slow", about="the fastest box of a site is ten times slower", faults=_bad("slow", 3)),
    replace(
        _FAULT,
        name="fault-link",
        about="a busy site's way to the cloud drops to a tenth",
        load=Load(rho=0.8, skew=0.7),
        faults=_bad("link", 0),
    ),
    replace(
        _FAULT,
        name="fault-spike",
        about="ten times the load on all sites for 2 s",
        load=Load(rho=0.3, spikes=((0.4, 2.0, 10.0, -1),)),
        settled=0.45,
    ),
]

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
MAIN = tuple(name for name in SCENARIOS if "-" not in name)
"""Those of the table; the variants are for a closer look."""
