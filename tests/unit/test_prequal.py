"""Prequal's pool of probes: reuse, removal, expiry. Not here: the rule made of it (``test_rules``)."""

from __future__ import annotations

from random import Random

import pytest

from mesh.prequal import Dials, Pool, Probe


def test_a_pool_uses_probes_up_and_drops_the_oldest_and_the_worst_in_turn() -> None:
    pool = Pool(Dials(pool=16, remove=1.0, quantile=0.5))
    pool.probes = [Probe(0, 3.0, 1.0, 2), Probe(1, 1.0, 2.0, 1), Probe(2, 2.0, 7.0, 9), Probe(3, 4.0, 3.0, 9)]
    assert (pool.use(1), pool.use(1), pool.use(0)) == (2.0, None, 1.0)
    assert [(probe.slot, probe.in_flight) for probe in pool.probes] == [(0, 2.0), (2, 7.0), (3, 3.0)]
    pool.remove(lambda probe: 0.0, Random(1))
    assert [probe.slot for probe in pool.probes] == [0, 3]
    pool.probes.append(Probe(5, 5.0, 8.0, 9))
    pool.remove(lambda probe: 0.0, Random(1))
    assert [probe.slot for probe in pool.probes] == [0, 3]
    pool.expire([0, 1], 3.5)
    assert [probe.slot for probe in pool.probes] == [0]
    pool.expire([0, 1], 4.1)
    assert pool.probes == []


def test_the_published_reuse() -> None:
    assert Dials().reuse(100) == pytest.approx(2.0 / (0.84 * 3.0 - 1.0))
    assert Dials().reuse(4) == pytest.approx(4.0), "a pool of half the replicas"
    assert Dials(share=1.0).reuse(4) == 16.0
