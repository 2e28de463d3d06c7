"""Proofs and tokens: who is believed, and every way to be one detail off."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ConfigError
from mesh.trust import CACHED_TOKENS, Trust

KEY = b"0123456789abcdef"
OTHER_KEY = b"fedcba9876543210"
CHALLENGE = "c0ffee"


def a_trust(node: str = "callee", *, mesh: str = "demo", incarnation: int = 7, key: bytes | None = KEY) -> Trust:
    return Trust(mesh, node, incarnation, key)


@dataclass
class Claim:
    """What a caller believes of the callee whose answer it checks."""

    challenge: str = CHALLENGE
    node: str = "callee"
    incarnation: int = 7


def proves_site(caller: Trust, proof: str, claim: Claim | None = None) -> bool:
    claim = claim or Claim()
    return caller.proves(claim.challenge, claim.node, claim.incarnation, site=proof)


def proves_bus(caller: Trust, proof: str, hop_key: str, claim: Claim | None = None) -> bool:
    claim = claim or Claim()
    return caller.proves(claim.challenge, claim.node, claim.incarnation, bus=proof, hop_key=hop_key)


def test_the_site_key_proves_both_ways() -> None:
    caller, callee = a_trust("caller", incarnation=3), a_trust()
    assert proves_site(caller, callee.answer(CHALLENGE, "site"))
    assert callee.proves(CHALLENGE, "caller", 3, site=caller.answer(CHALLENGE, "site"))
    token = caller.token_for("callee", 7, None)
    assert token is not None
    assert callee.verify_token(token) == "caller"
    back = callee.token_for("caller", 3, None)
    assert back is not None
    assert caller.verify_token(back) == "callee"


def test_the_bus_proves_without_a_site_key() -> None:
    caller, callee = a_trust("caller", key=None), a_trust(key=None)
    assert proves_bus(caller, callee.answer(CHALLENGE, "bus"), callee.hop_key)
    token = caller.token_for("callee", 7, callee.hop_key)
    assert token is not None
    assert callee.verify_token(token) == "caller"


def test_the_bus_is_preferred_and_either_kind_of_token_is_taken() -> None:
    caller, callee = a_trust("caller"), a_trust()
    by_bus, by_site = caller.token_for("callee", 7, callee.hop_key), caller.token_for("callee", 7, None)
    assert by_bus is not None
    assert by_site is not None
    assert by_bus != by_site
    assert callee.verify_token(by_bus) == callee.verify_token(by_site) == "caller"


def test_nothing_shared_means_nothing_is_sent() -> None:
    caller, callee = a_trust("caller", key=None), a_trust(key=None)
    assert caller.token_for("callee", 7, None) is None
    assert callee.answer(CHALLENGE, "site") == ""
    assert not caller.proves(CHALLENGE, "callee", 7, site="", bus="", hop_key="")


@pytest.mark.parametrize(
    "claim",
    [Claim(challenge="c0ffef"), Claim(node="calle"), Claim(incarnation=8), Claim(node="callee7", incarnation=0)],
)
def test_an_answer_is_good_for_one_challenge_node_and_incarnation(claim: Claim) -> None:
    caller, callee = a_trust("caller"), a_trust()
    assert not proves_site(caller, callee.answer(CHALLENGE, "site"), claim)
    assert not proves_bus(caller, callee.answer(CHALLENGE, "bus"), callee.hop_key, claim)


@pytest.mark.parametrize("stranger", [a_trust(key=OTHER_KEY), a_trust(mesh="other")], ids=["key", "mesh"])
def test_another_key_or_mesh_proves_nothing(stranger: Trust) -> None:
    member = a_trust()
    assert not proves_site(member, stranger.answer(CHALLENGE, "site"))
    token = stranger.token_for("callee", 7, None)
    assert token is not None
    assert member.verify_token(token) is None


def test_a_hop_key_of_another_mesh_proves_nothing() -> None:
    member, stranger = a_trust(key=None), a_trust(mesh="other", key=None)
    assert not proves_bus(member, stranger.answer(CHALLENGE, "bus"), stranger.hop_key)
    token = stranger.token_for("callee", 7, member.hop_key)
    assert token is not None
    assert member.verify_token(token) is None


@pytest.mark.parametrize(("callee", "incarnation"), [("other", 7), ("callee", 6), ("callee", 8)])
def test_a_token_is_for_one_callee_and_one_incarnation(callee: str, incarnation: int) -> None:
    caller, member = a_trust("caller"), a_trust()
    for hop_key in (None, member.hop_key):
        token = caller.token_for(callee, incarnation, hop_key)
        assert token is not None
        assert member.verify_token(token) is None


def test_a_token_does_not_outlive_the_process() -> None:
    caller, before = a_trust("caller", key=None), a_trust(key=None)
    token = caller.token_for("callee", 7, before.hop_key)
    assert token is not None
    assert before.verify_token(token) == "caller"
    assert a_trust(key=None).verify_token(token) is None


def test_kinds_are_not_confused() -> None:
    """Not even where one secret were used for both."""
    caller, callee = a_trust("caller"), a_trust()
    site, bus = callee.answer(CHALLENGE, "site"), callee.answer(CHALLENGE, "bus")
    assert not caller.proves(CHALLENGE, "callee", 7, site=bus, bus=site, hop_key=callee.hop_key)
    token = caller.token_for("callee", 7, None)
    assert token is not None
    assert callee.verify_token(token.replace("site:", "bus:")) is None
    assert callee.verify_token("site:caller:" + callee.answer("caller", "site")) is None, "an answer is no token"


def test_a_token_names_its_caller() -> None:
    caller, callee = a_trust("caller"), a_trust()
    token = caller.token_for("callee", 7, None)
    assert token is not None
    assert callee.verify_token(token.replace(":caller:", ":boss:")) is None


@pytest.mark.parametrize("weak", ["", "00", "ab" * 15, "not hex at all, yet longer than any hop key is", "é" * 64])
def test_a_hop_key_that_no_node_makes_proves_nothing(weak: str) -> None:
    """A report with an empty or guessable hop key must not let anybody sign with it."""
    caller = a_trust("caller", key=None)
    assert caller.token_for("callee", 7, weak) is None
    assert not proves_bus(caller, "", weak)


@given(st.text(max_size=400))
def test_garbage_is_nobody(text: str) -> None:
    callee = a_trust()
    assert callee.verify_token(text) is None
    assert callee.verify_token(f"site:caller:{text}") is None
    assert not callee.proves(text, text, 0, site=text, bus=text, hop_key=text)


def test_the_cache_of_callers_is_bounded_and_only_of_proven_ones() -> None:
    callee = a_trust()
    tokens = [a_trust(f"n{n}").token_for("callee", 7, None) or "" for n in range(CACHED_TOKENS + 10)]
    assert [callee.verify_token(t) for t in tokens] == [f"n{n}" for n in range(len(tokens))]
    for n in range(100):
        assert callee.verify_token(f"site:n{n}:{'0' * 64}") is None
    assert len(callee._callers) == CACHED_TOKENS
    assert callee.verify_token(tokens[0]) == "n0", "one that fell out is proven again"


def test_fingerprints_tell_keys_apart_and_say_nothing_without_one() -> None:
    assert a_trust("a").fingerprint == a_trust("b").fingerprint
    assert len({a_trust().fingerprint, a_trust(key=OTHER_KEY).fingerprint, a_trust(mesh="other").fingerprint, ""}) == 4
    assert a_trust(key=None).fingerprint == ""


def test_a_short_site_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"site\.key.*at least 16"):
        a_trust(key=b"0123456789abcde")
