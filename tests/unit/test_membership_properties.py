"""Membership by property: the same table from any order of reports, and changes that tell all that happened to it."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.membership import Change, Membership
from mesh.messages import Report
from tests.builders import a_load, a_model_load, a_report, an_identity

property_test = settings(deadline=None, max_examples=150, database=None, suppress_health_check=[HealthCheck.too_slow])


def names(table: Membership, model: str = "resnet", *, draining: bool = False) -> list[str]:
    return sorted(view.node for view in table.holders(model, draining=draining))


reports = st.builds(
    a_report,
    st.sampled_from(["n1", "n2"]),
    seq=st.integers(1, 6),
    incarnation=st.integers(1, 3),
    state=st.sampled_from(["starting", "ready", "draining", "left"]),
    models=st.sampled_from([(), (a_model_load(),), (a_model_load("bert"), a_model_load())]),
)


def bus_and_lan_forms(sent: list[Report]) -> list[Report]:
    """What two ways carry of the same reports: each (node, incarnation, seq) is one report, one form with a key."""
    once = {(r.node, r.incarnation, r.seq): r for r in sent}
    forms = []
    for (node, incarnation, _), report in once.items():
        fields = {name: getattr(report, name) for name in ("seq", "incarnation", "state", "models")}
        forms += [report, a_report(node, hop_key=f"{node}-{incarnation}", **fields)]
    return forms


def snapshot(table: Membership) -> list[tuple[object, ...]]:
    views = sorted(table.nodes(), key=lambda view: view.node)
    return [(v.node, v.state, v.report, names(table), names(table, "bert", draining=True)) for v in views]


@property_test
@given(st.lists(reports, max_size=12), st.integers(0, 2**32))
def test_any_order_and_duplication_ends_in_the_same_table(sent: list[Report], seed: int) -> None:
    forms = bus_and_lan_forms(sent)
    shuffled = forms + forms[::2]
    Random(seed).shuffle(shuffled)
    one, other = Membership(), Membership()
    for report in forms:
        one.apply(report, 1.0)
    for report in shuffled:
        other.apply(report, 1.0)
    assert snapshot(one) == snapshot(other)


steps = st.one_of(
    reports.map(lambda report: ("apply", report)),
    st.builds(a_load, incarnation=st.integers(1, 3), seq=st.integers(1, 8)).map(lambda load: ("observe", load)),
    st.just(("suspect", None)),
    st.floats(0.01, 700.0).map(lambda pause: ("pause", pause)),
)


@property_test
@given(st.lists(steps, max_size=25))
def test_changes_tell_the_whole_story_and_no_expiry_is_missed(story: list[tuple[str, object]]) -> None:
    """A listener that only sees changes knows every state; expire does something exactly when it said it would."""
    table, now = Membership(), 0.0
    told: dict[str, str] = {}

    def hear(*changes: Change | None) -> None:
        for change in changes:
            if change is not None:
                assert told.get(change.node) == change.old
                assert change.old != change.new
                told[change.node] = change.new

    for kind, what in story:
        if kind == "apply":
            assert isinstance(what, Report)
            hear(table.apply(what, now))
        elif kind == "observe":
            hear(table.observe("n1", what, an_identity(), now))  # type: ignore[arg-type]
        elif kind == "suspect":
            hear(table.suspect("n1", now))
        else:
            assert isinstance(what, float)
            end = now + what
            while (due := table.next_expiry()) is not None and due <= end:
                assert due >= now
                before = {v.node: v.state for v in table.nodes()}
                now = due
                hear(*table.expire(now))
                after = {v.node: v.state for v in table.nodes()}
                assert before != after
                for node in before.keys() - after.keys():
                    told.pop(node)
            now = end
        assert told == {view.node: view.state for view in table.nodes()}
        listing = {v.node for v in table.nodes() if v.models and v.state not in ("lost", "left")}
        assert set(names(table, draining=True)) == listing


@property_test
@given(st.lists(steps, max_size=25))
def test_an_edition_stands_for_who_holds_which_bytes_ready(story: list[tuple[str, object]]) -> None:
    """As long as it stays, what a name means cannot have changed; its holders are the table's own views."""
    table, now = Membership(), 0.0
    seen: dict[int, object] = {}
    for kind, what in story:
        if kind == "apply":
            assert isinstance(what, Report)
            table.apply(what, now)
        elif kind == "observe":
            table.observe("n1", what, an_identity(), now)  # type: ignore[arg-type]
        elif kind == "suspect":
            table.suspect("n1", now)
        else:
            assert isinstance(what, float)
            now += what
            table.expire(now)
        views = sorted(table.holders("resnet"), key=lambda view: view.node)
        assert all(view is table.get(view.node) for view in views)
        held = [(v.node, m.identity, m.state == "READY") for v in views for m in v.models if m.name == "resnet"]
        assert seen.setdefault(table.edition("resnet"), held) == held
