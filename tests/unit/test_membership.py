"""Membership by example: liveness on the receiver's clock, order of reports, goodbyes, restarts, loads, the index."""

from __future__ import annotations

import msgspec
import pytest

from mesh.membership import MAX_TTL_MS, Change, Membership
from mesh.messages import Load, Work
from tests.builders import OTHER_DIGEST, a_load, a_model_load, a_report, an_identity


def state(table: Membership, node: str = "n1") -> str | None:
    view = table.get(node)
    return None if view is None else view.state


def names(table: Membership, model: str = "resnet", *, draining: bool = False) -> list[str]:
    return sorted(view.node for view in table.holders(model, draining=draining))


def test_first_report_brings_a_node_in() -> None:
    table = Membership()
    assert table.apply(a_report(state="starting"), 10.0) == Change("n1", None, "starting")
    assert table.apply(a_report(seq=2), 11.0) == Change("n1", "starting", "ready")
    assert table.apply(a_report(seq=3), 12.0) is None
    view = table.get("n1")
    assert view is not None
    assert (view.node, view.state, view.heard_at, view.since) == ("n1", "ready", 12.0, 11.0)
    assert view.models == a_report().models


def test_silence_makes_suspect_after_one_ttl_and_lost_after_three() -> None:
    table = Membership()
    table.apply(a_report(ttl_ms=1500), 100.0)
    assert table.next_expiry() == 101.5
    assert table.expire(101.4) == []
    assert table.expire(101.5) == [Change("n1", "ready", "suspect")]
    assert table.next_expiry() == 104.5
    assert table.expire(104.4) == []
    assert table.expire(104.5) == [Change("n1", "suspect", "lost")]
    assert table.expire(104.6) == []


def test_a_long_pause_goes_straight_to_lost() -> None:
    table = Membership()
    table.apply(a_report(), 0.0)
    assert table.expire(60.0) == [Change("n1", "ready", "lost")]


@pytest.mark.parametrize("departed", ["lost", "left"])
def test_a_departed_node_stays_visible_then_is_forgotten(departed: str) -> None:
    table = Membership(keep_s=600.0)
    table.apply(a_report(), 0.0)
    if departed == "left":
        table.apply(a_report(seq=2, state="left"), 5.0)
    table.expire(5.0)
    assert state(table) == departed
    assert names(table) == []
    assert table.next_expiry() == 605.0
    assert [view.node for view in table.nodes()] == ["n1"]
    assert table.expire(605.0) == []
    assert list(table.nodes()) == []
    assert table.next_expiry() is None


def test_a_report_revives_a_suspect_and_a_lost_node() -> None:
    table = Membership()
    table.apply(a_report(), 0.0)
    table.expire(2.0)
    assert table.apply(a_report(seq=2), 2.1) == Change("n1", "suspect", "ready")
    table.expire(30.0)
    assert table.apply(a_report(seq=3), 31.0) == Change("n1", "lost", "ready")
    assert names(table) == ["n1"]


def test_old_and_equal_reports_refresh_nothing() -> None:
    table = Membership()
    table.apply(a_report(seq=5, wait_ms=7.0), 0.0)
    for seq in (5, 4):
        assert table.apply(a_report(seq=seq, state="draining", wait_ms=99.0), 1.0) is None
    view = table.get("n1")
    assert view is not None
    assert (view.state, view.heard_at, view.report.wait_ms) == ("ready", 0.0, 7.0)


def test_goodbye_is_final_for_its_incarnation() -> None:
    table = Membership()
    table.apply(a_report(seq=9), 0.0)
    assert table.apply(a_report(seq=8, state="left"), 0.1) == Change("n1", "ready", "left")
    assert table.apply(a_report(seq=10), 0.2) is None
    assert table.suspect("n1", 0.3) is None
    assert table.observe("n1", a_load(seq=11), an_identity(), 0.4) is None
    assert state(table) == "left"
    assert table.apply(a_report(incarnation=2), 0.5) == Change("n1", "left", "ready")


def test_goodbye_of_an_earlier_start_is_ignored() -> None:
    table = Membership()
    table.apply(a_report(incarnation=2), 0.0)
    assert table.apply(a_report(incarnation=1, seq=99, state="left"), 0.1) is None
    assert state(table) == "ready"
    assert table.conflicts == {}


def test_a_restart_orders_by_incarnation_not_by_seq() -> None:
    table = Membership()
    table.apply(a_report(seq=500, hop_key="old"), 0.0)
    assert table.apply(a_report(incarnation=2, seq=1, state="starting", models=()), 3.0) == Change(
        "n1", "ready", "starting"
    )
    view = table.get("n1")
    assert view is not None
    assert (view.report.hop_key, view.since) == ("", 3.0)
    assert names(table) == []


def test_a_restart_ends_all_doubt_and_its_old_goodbye_is_no_conflict() -> None:
    table = Membership()
    table.apply(a_report(seq=1), 0.0)
    table.suspect("n1", 0.1)
    assert table.apply(a_report(incarnation=2, seq=1), 0.2) == Change("n1", "suspect", "ready")
    table.apply(a_report(seq=2, state="left"), 0.3)
    assert (state(table), table.conflicts) == ("ready", {})


def test_two_processes_of_one_name_the_later_start_wins_and_the_conflict_shows() -> None:
    table = Membership()
    for seq in range(1, 6):
        table.apply(a_report(incarnation=1, seq=seq, site="one"), float(seq))
        table.apply(a_report(incarnation=2, seq=seq, site="two"), seq + 0.5)
    view = table.get("n1")
    assert view is not None
    assert (view.report.site, view.report.seq) == ("two", 5)
    assert table.conflicts == {"n1": 4}


def test_the_lan_form_erases_neither_hop_key_nor_bus() -> None:
    table = Membership()
    table.apply(a_report(hop_key="k", nats="nats://bus"), 0.0)
    table.apply(a_report(seq=2, wait_ms=3.0), 1.0)
    view = table.get("n1")
    assert view is not None
    assert (view.report.hop_key, view.report.nats, view.report.wait_ms) == ("k", "nats://bus", 3.0)


def test_a_late_bus_form_still_brings_its_hop_key() -> None:
    table = Membership()
    table.apply(a_report(seq=2), 1.0)
    table.apply(a_report(seq=2, hop_key="k"), 5.0)
    view = table.get("n1")
    assert view is not None
    assert (view.report.hop_key, view.heard_at) == ("k", 1.0)


def test_a_doubted_node_stays_suspect_until_it_is_heard_anew() -> None:
    table = Membership()
    table.apply(a_report(seq=3), 0.0)
    assert table.suspect("n1", 0.5) == Change("n1", "ready", "suspect")
    assert table.suspect("n1", 0.6) is None
    assert table.apply(a_report(seq=3), 0.7) is None
    assert table.observe("n1", a_load(seq=3), an_identity(), 0.8) is None
    assert state(table) == "suspect"
    assert table.apply(a_report(seq=4), 0.9) == Change("n1", "suspect", "ready")


def test_a_doubted_node_that_stays_silent_is_lost_in_time() -> None:
    table = Membership()
    table.apply(a_report(ttl_ms=1000), 0.0)
    table.suspect("n1", 0.1)
    assert table.next_expiry() == 3.0
    assert table.expire(3.0) == [Change("n1", "suspect", "lost")]
    assert table.suspect("n1", 3.1) is None
    assert table.suspect("nobody", 3.1) is None


def test_a_reply_refreshes_load_and_liveness() -> None:
    table = Membership()
    other = a_model_load("bert", service_ms=40.0)
    table.apply(a_report(models=(a_model_load(), other)), 0.0)
    table.expire(2.0)
    load = a_load(seq=1, wait_ms=12.0, in_flight=3, service_ms=6.0)
    assert table.observe("n1", load, an_identity(), 2.1) == Change("n1", "suspect", "ready")
    view = table.get("n1")
    assert view is not None
    assert (view.report.wait_ms, view.heard_at) == (12.0, 2.1)
    model = view.model(an_identity())
    assert model is not None
    assert (model.in_flight, model.service_ms) == (3, 6.0)
    assert view.model(an_identity("bert")) == other


def test_the_newest_load_of_any_model_tells_of_the_node_and_each_of_its_own_model() -> None:
    table = Membership()
    table.apply(a_report(models=(a_model_load(), a_model_load("bert", service_ms=40.0))), 0.0)
    one = Load(1, 3, "ready", 9.0, 1, 6.0, 2.0, 100, ((1, (4.0,)),))
    two = Load(1, 5, "ready", 20.0, 2, 41.0, 30.0, 0, ((16, (8.0,)),))
    table.observe("n1", two, an_identity("bert"), 0.2)
    table.observe("n1", one, an_identity(), 0.3)  # late
    view = table.get("n1")
    assert view is not None
    report = view.report
    assert (report.work, report.uplink_bytes) == (two.work, 0)
    assert [(m.in_flight, m.service_ms, m.row_ms) for m in view.models] == [(1, 6.0, 2.0), (2, 41.0, 30.0)]
    assert (view.heard_at, view.figures_at) == (0.3, 0.2)
    table.apply(a_report(seq=4, queued=((1, (1.0,)),)), 0.4)  # behind the load
    view = table.get("n1")
    assert view is not None
    assert (view.report.work, view.heard_at, view.figures_at) == (two.work, 0.4, 0.2)
    table.apply(a_report(seq=6, queued=((1, (1.0,)),), uplink_bytes=5), 0.5)
    view = table.get("n1")
    assert view is not None
    assert (view.report.work, view.report.uplink_bytes) == (Work(0.0, ((1, (1.0,)),)), 5)
    assert (view.heard_at, view.figures_at) == (0.5, 0.5)


def test_a_load_of_a_model_that_is_gone_takes_nothing_back_of_what_it_costs() -> None:
    table = Membership()
    model = msgspec.structs.replace(a_model_load(service_ms=5.0), row_ms=1.5)
    table.apply(a_report(models=(model,)), 0.0)
    table.observe("n1", a_load(seq=2, wait_ms=3.0, service_ms=0.0), an_identity(), 0.1)
    view = table.get("n1")
    assert view is not None
    assert view.report.wait_ms == 3.0
    assert view.models == (model,)


def test_a_reply_says_that_the_node_drains() -> None:
    table = Membership()
    table.apply(a_report(), 0.0)
    assert table.observe("n1", a_load(state="draining"), None, 0.1) == Change("n1", "ready", "draining")
    assert names(table) == []
    assert names(table, draining=True) == ["n1"]


def test_a_report_behind_a_reply_does_not_undo_it_but_brings_the_rest() -> None:
    table = Membership()
    table.apply(a_report(seq=1), 0.0)
    table.observe("n1", a_load(seq=5, wait_ms=50.0, state="draining"), an_identity(), 0.1)
    table.apply(a_report(seq=3, wait_ms=1.0, models=(a_model_load(service_ms=9.0), a_model_load("bert"))), 0.2)
    view = table.get("n1")
    assert view is not None
    assert (view.state, view.report.wait_ms) == ("draining", 50.0)
    assert [(m.name, m.service_ms) for m in view.models] == [("resnet", 5.0), ("bert", 5.0)]
    table.apply(a_report(seq=6, wait_ms=2.0), 0.3)
    view = table.get("n1")
    assert view is not None
    assert (view.state, view.report.wait_ms) == ("ready", 2.0)


@pytest.mark.parametrize(
    "load",
    [
        a_load(seq=1),
        a_load(incarnation=2, seq=9),
        a_load(seq=9, wait_ms=float("nan")),
        a_load(seq=9, wait_ms=float("inf")),
        a_load(seq=9, service_ms=-1.0),
        a_load(seq=9, in_flight=-1),
        msgspec.structs.replace(a_load(seq=9), queued=((1, (1e300,)),)),
        msgspec.structs.replace(a_load(seq=9), uplink_bytes=-1),
    ],
)
def test_an_older_foreign_or_absurd_load_is_ignored(load: object) -> None:
    table = Membership()
    table.apply(a_report(seq=2, wait_ms=4.0), 0.0)
    before = table.get("n1")
    assert table.observe("n1", load, an_identity(), 1.0) is None  # type: ignore[arg-type]
    assert table.get("n1") == before
    assert table.observe("nobody", a_load(), an_identity(), 1.0) is None


def test_holders_follow_the_models_of_a_node() -> None:
    table = Membership()
    table.apply(a_report("n1"), 0.0)
    table.apply(a_report("n2", models=(a_model_load("bert"), a_model_load(version="2"))), 0.0)
    assert (names(table), names(table, "bert")) == (["n1", "n2"], ["n2"])
    table.apply(a_report("n2", seq=2, models=(a_model_load("bert"),)), 0.5)
    assert (names(table), names(table, "bert")) == (["n1"], ["n2"])
    table.apply(a_report("n2", seq=3, state="draining", models=(a_model_load("bert"),)), 0.6)
    assert (names(table, "bert"), names(table, "bert", draining=True)) == ([], ["n2"])
    table.apply(a_report("n2", seq=4, state="left", models=(a_model_load("bert"),)), 0.7)
    assert names(table, "bert", draining=True) == []
    assert names(table, "unknown") == []


def test_a_view_tells_other_bytes_apart() -> None:
    table = Membership()
    table.apply(a_report(models=(a_model_load(digest=OTHER_DIGEST),)), 0.0)
    view = table.get("n1")
    assert view is not None
    assert view.model(an_identity()) is None
    assert view.model(an_identity(digest=OTHER_DIGEST)) is not None


@pytest.mark.parametrize("unknown", ["hibernating", "lost", "suspect", ""])
def test_a_state_of_a_later_version_is_not_sent_to(unknown: str) -> None:
    table = Membership()
    table.apply(a_report(state=unknown), 0.0)
    assert names(table) == []


@pytest.mark.parametrize(("ttl_ms", "at"), [(-5, 0.001), (0, 0.001), (10**12, MAX_TTL_MS / 1e3)])
def test_an_absurd_ttl_makes_no_node_immortal(ttl_ms: int, at: float) -> None:
    table = Membership()
    table.apply(a_report(ttl_ms=ttl_ms), 0.0)
    assert table.next_expiry() == pytest.approx(at)
    assert table.expire(at) == [Change("n1", "ready", "suspect")]
