"""Agents on the hosts of a LAN, found by zeroconf, without any bus: who finds whom, who is trusted, who is missed.

Each host is a network namespace. Not here: discovery by itself (``tests.integration.test_discovery``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from mesh.child import tied
from mesh.cluster import Child
from tests import onnx_models
from tests.integration.doors import repository
from tests.netns import Host, lan
from tests.system.ask import CALLERS, N, X
from tests.system.processes import PATIENCE_S, ROOT, Site, cli, command, until

pytestmark = [pytest.mark.netns, pytest.mark.asyncio(loop_scope="module")]

HERE = "http://127.0.0.1:8000"
RIGHT = [0.25, 0.25, 0.25]


@dataclass(frozen=True)
class Shop:
    """Host 0 runs ``asking``, which lacks both models; host 1 ``keeper``, which holds them; 2 and 3 are free."""

    site: Site
    hosts: list[Host]
    asking: Child
    keeper: Child
    models: Path
    x: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("lan")
    pool = repository(folder / "pool", {"pool": onnx_models.pool(), "count": onnx_models.loop()})
    other = repository(folder / "other", {"sum": onnx_models.add()})
    np.save(folder / "x.npy", X)
    with lan(4) as hosts:
        async with Site(folder) as site:
            asking = await site.agent("asking", other, host=hosts[0])
            keeper = await site.agent("keeper", pool, host=hosts[1])
            await asyncio.gather(asking.until_ready(), keeper.until_ready())
            shop = Shop(site, hosts, asking, keeper, pool, folder / "x.npy")
            await until_shown(shop, "keeper", "ready")
            yield shop


async def nodes(shop: Shop) -> dict[str, str]:
    """What ``mesh nodes`` shows on host 0, asking the agent there."""
    rows = (await cli("nodes", "--url", HERE, host=shop.hosts[0]))["nodes"]
    return {row["node"]: row["state"] for row in rows}


async def until_shown(shop: Shop, node: str, state: str) -> float:
    async def reached() -> bool:
        return (await nodes(shop)).get(node) == state

    return await until(reached, f"{node} is shown as {state}")


class Asking:
    """An application on host 0 that asks the door there all the time."""

    def __init__(self, shop: Shop, model: str = "count") -> None:
        self._right = [N] if model == "count" else RIGHT
        self._line = shop.hosts[0].command(sys.executable, "-m", "tests.system.ask", "often", HERE, model)

    async def __aenter__(self) -> Asking:
        self._process = await asyncio.create_subprocess_exec(
            *tied(self._line), stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def answer(self) -> dict[str, Any]:
        """The next answer, which must be a right one."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE_S)
        answer: dict[str, Any] = json.loads(line)
        assert (answer.get("y"), answer.get("route")) == (self._right, "peer"), answer
        assert answer["hops"] in (1, 2), answer  # who is busy may pass it on once more
        return answer

    async def answers_of(self, node: str, count: int) -> None:
        end = time.monotonic() + 2 * PATIENCE_S
        while count:
            assert time.monotonic() < end, f"{node} is not asked"
            count -= (await self.answer())["node"] == node

    async def answers_until(self, reached: Awaitable[object]) -> None:
        """Read answers until ``reached``, then until every caller got one to a request that it has made since."""
        state = asyncio.ensure_future(asyncio.wait_for(reached, PATIENCE_S))
        try:
            while not state.done():
                await self.answer()
        finally:
            state.cancel()
        await state
        waiting = dict.fromkeys(range(CALLERS), 2)
        while any(waiting.values()):
            caller = (await self.answer())["caller"]
            waiting[caller] = max(waiting[caller] - 1, 0)


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_client_on_another_host_needs_no_configuration(shop: Shop, mode: str) -> None:
    code, out, err = await command("tests.system.ask", mode, host=shop.hosts[2])
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["node"], answer["y"]) == ("keeper", RIGHT)


async def test_a_door_that_lacks_the_model_sends_it_to_the_neighbour(shop: Shop) -> None:
    door = f"http://{shop.hosts[0].address}:8000"
    answer = await cli("infer", "pool", "--input", f"X={shop.x}", "--url", door, host=shop.hosts[2])
    assert answer["outputs"][0]["data"] == RIGHT
    assert (answer["node"], answer["route"], answer["hops"]) == ("keeper", "peer", 1)


async def test_a_neighbour_that_is_killed_costs_its_callers_nothing(shop: Shop) -> None:
    async with shop.site.guest("victim", shop.models, host=shop.hosts[2]) as victim:
        await until_shown(shop, "victim", "ready")
        async with Asking(shop) as asking:
            await asking.answers_of("victim", 5)
            await victim.kill()
            await asking.answers_until(until_shown(shop, "victim", "lost"))


async def test_a_neighbour_that_leaves_under_load_costs_its_callers_nothing(shop: Shop) -> None:
    async with shop.site.guest("busy-guest", shop.models, host=shop.hosts[2]) as guest:
        await until_shown(shop, "busy-guest", "ready")
        async with Asking(shop) as asking:
            await asking.answers_of("busy-guest", 5)
            os.kill(guest.pid, signal.SIGTERM)
            await asking.answers_until(guest.wait())
        assert await guest.wait() == 0
        assert (await nodes(shop))["busy-guest"] == "left"


async def test_a_neighbour_that_leaves_says_so(shop: Shop) -> None:
    async with shop.site.guest("idle-guest", shop.models, host=shop.hosts[2]) as guest:
        await until_shown(shop, "idle-guest", "ready")
        await guest.stop()
        assert (await nodes(shop))["idle-guest"] == "left"


async def test_a_neighbour_whose_cable_is_pulled_costs_its_callers_nothing(shop: Shop) -> None:
    """No connection is closed: what was under way there is given up when the node is, not at its deadline."""
    host = shop.hosts[2]
    async with shop.site.guest("unplugged", shop.models, host=host):
        await until_shown(shop, "unplugged", "ready")
        async with Asking(shop) as asking:
            await asking.answers_of("unplugged", 5)
            host.ip("link set eth0 down")
            try:
                await asking.answers_until(until_shown(shop, "unplugged", "lost"))
            finally:
                host.ip("link set eth0 up")


async def test_strangers_are_never_sent_tensors(shop: Shop) -> None:
    wrong = {"MESH_SITE__KEY": secrets.token_hex(32)}
    async with (
        shop.site.guest("wrong-key", shop.models, host=shop.hosts[2], environ=wrong),
        shop.site.guest("other-mesh", shop.models, "--mesh", "another", host=shop.hosts[3]),
    ):
        warning = "node wrong-key at 10.77.0.3:8000 did not prove"

        async def warned() -> bool:
            return warning in shop.site.log("asking").read_text()

        await until(warned, "asking warns of the wrong key")
        received = [_received_bytes(host) for host in shop.hosts[1:]]
        async with Asking(shop, "pool") as asking:
            await asking.answers_of("keeper", 100)
        keeper, *strangers = [_received_bytes(h) - r for h, r in zip(shop.hosts[1:], received, strict=True)]
        assert keeper > 100 * X.nbytes
        assert max(strangers) < X.nbytes
        shown = await nodes(shop)
        assert "wrong-key" not in shown
        assert "other-mesh" not in shown
    said = shop.site.log("asking").read_text()
    assert said.count("wrong-key") == said.count(warning) == 1
    assert "other-mesh" not in said


def _received_bytes(host: Host) -> int:
    count = "/sys/class/net/eth0/statistics/rx_bytes"
    return int(subprocess.run(host.command("cat", count), capture_output=True, text=True, check=True).stdout)
