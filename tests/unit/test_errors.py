"""The error tree: one table of codes and statuses, and errors that survive a hop."""

from __future__ import annotations

import pytest

from edge.hardware_errors import TABLE, translate
from hardware import errors as hw
from mesh import errors
from mesh.deadline import MAX_MS, Deadline
from mesh.errors import (
    BY_CODE,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    MeshError,
    NodeLost,
    NotFound,
    Overloaded,
    Unavailable,
    from_wire,
)

ALL = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, MeshError)]


def test_every_error_is_found_by_its_code() -> None:
    assert {cls.code for cls in ALL} == set(BY_CODE)
    for code, cls in BY_CODE.items():
        assert cls.code == code
        assert 400 <= cls.status < 600
        assert cls.retryable or not cls.refused  # what was never started may always be tried elsewhere


@pytest.mark.parametrize("cls", [cls for cls in ALL if cls is not MeshError], ids=lambda cls: str(cls.code))
def test_an_error_survives_a_hop(cls: type[MeshError]) -> None:
    rebuilt = from_wire(cls.code, "why", cls.status, 2.5)
    assert type(rebuilt) is cls
    assert (rebuilt.text, rebuilt.retry_after_s, str(rebuilt)) == ("why", 2.5, "why")


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (301, Internal),
        (400, InvalidRequest),
        (404, NotFound),
        (413, errors.PayloadTooLarge),
        (418, InvalidRequest),
        (429, Overloaded),
        (500, Internal),
        (501, errors.Unsupported),
        (502, errors.ProtocolError),
        (503, Unavailable),
        (504, errors.DeadlineExceeded),
    ],
)
def test_a_door_that_says_no_code_is_understood_by_its_status(status: int, cls: type[MeshError]) -> None:
    assert type(from_wire("", "plain Triton", status)) is cls


def test_every_error_of_the_hardware_has_a_meaning_in_the_mesh() -> None:
    for ours in hw.BY_CODE.values():
        translated = translate(ours("why"))
        assert translated.text == "why"
        assert type(translated) is next(theirs for cls, theirs in TABLE if issubclass(ours, cls))
    assert type(translate(hw.HardwareError("unknown"))) is errors.InferenceFailed
    for sooner, later in [(a, b) for i, (a, _) in enumerate(TABLE) for b, _ in TABLE[i + 1 :]]:
        assert not issubclass(later, sooner)  # else it would never be reached


def test_a_lost_node_is_retryable_but_not_refused() -> None:
    assert (NodeLost.retryable, NodeLost.refused) == (True, False)


def test_a_deadline_is_bounded_and_checked() -> None:
    assert Deadline.after_ms(-5).expired
    assert Deadline.after_ms(1e18).left_ms() <= MAX_MS
    fresh = Deadline.after_ms(60_000)
    fresh.check()
    assert not fresh.expired
    assert fresh.left_s() == pytest.approx(fresh.left_ms() / 1e3, abs=1.0)
    with pytest.raises(DeadlineExceeded):
        Deadline.after_ms(0).check()
