"""The persisted identity: kept, never shared, growing, and no reason not to serve."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.node_id import claim, default_state_dir


def test_the_id_stays_and_the_incarnation_grows(tmp_path: Path) -> None:
    with claim(tmp_path, None) as first:
        assert len(first.id) == 32
        assert abs(first.incarnation - time.time() * 1000) < 60_000
    with claim(tmp_path, None) as second:
        assert second.id == first.id
        assert second.incarnation > first.incarnation


def test_a_clock_that_jumped_back_does_not_take_the_incarnation_along(tmp_path: Path) -> None:
    with claim(tmp_path, None) as first:
        pass
    stored = tmp_path / "default" / "node.json"
    future = first.incarnation + 10**12
    stored.write_text(json.dumps({"id": first.id, "incarnation": future}))
    with claim(tmp_path, None) as second:
        assert (second.id, second.incarnation) == (first.id, future + 1)


def test_agents_of_one_box_are_different_nodes_and_come_back_as_the_same(tmp_path: Path) -> None:
    def three() -> list[str]:
        with ExitStack() as stack:
            return [stack.enter_context(claim(tmp_path, None)).id for _ in range(3)]

    ids = three()
    assert len(set(ids)) == 3
    assert three() == ids
    assert sorted(p.name for p in tmp_path.iterdir()) == ["default", "default-2", "default-3"]


def test_a_name_has_its_own_folder_and_one_process(tmp_path: Path) -> None:
    with claim(tmp_path, "till-1") as one, claim(tmp_path, "till-2") as two:
        assert one.id != two.id
        with pytest.raises(ConfigError, match="till-1"), claim(tmp_path, "till-1"):
            pass
    with claim(tmp_path, "till-1") as again:
        assert again.id == one.id


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mesh.node_id import claim\n"
        "with claim(Path(sys.argv[1]), 'till') as node: print(node.id, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        theirs = process.stdout.readline().strip()
        with pytest.raises(ConfigError), claim(tmp_path, "till"):
            pass
        process.kill()
        process.wait(60)
    with claim(tmp_path, "till") as ours:
        assert ours.id == theirs


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\0", b"[]", b'{"id":"x","incarnation":1}', b'{"id":"' + b"a" * 32 + b'","incarnation":-1}',
     b'{"id":"' + b"a" * 32 + b'","incarnation":9007199254740992}', b'{"incarnation":1}'],
)  # fmt: skip
def test_a_corrupt_file_gives_a_new_id_and_is_kept_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "default"
    folder.mkdir()
    (folder / "node.json").write_bytes(content)
    with claim(tmp_path, None) as node:
        assert "cannot be used" in caplog.text
        assert (folder / "node.json.bad").read_bytes() == content
    with claim(tmp_path, None) as again:
        assert again.id == node.id


def test_where_nothing_can_be_written_the_node_serves_under_a_passing_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with claim(tmp_path / "file" / "state", None) as one, claim(tmp_path / "file" / "state", None) as two:
        assert one.id != two.id
        assert one.folder is None
        one.remember_bus("nats://10.0.0.1:4222")
        assert one.known_bus() == ""
    assert "identity of this run is lost" in caplog.text


@contextmanager
def no_space() -> Iterator[None]:
    """Every write to a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_id_stays_and_the_incarnation_still_grows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with claim(tmp_path, None) as first:
        first.remember_bus("nats://10.0.0.1:4222")
    with no_space(), claim(tmp_path, None) as second:
        second.remember_bus("nats://10.0.0.2:4222")
    assert second.id == first.id
    assert second.incarnation > first.incarnation
    assert "cannot store the node's identity" in caplog.text
    with claim(tmp_path, None) as third:
        assert (third.id, third.known_bus()) == (first.id, "nats://10.0.0.1:4222")


def test_the_bus_is_remembered(tmp_path: Path) -> None:
    with claim(tmp_path, None) as first:
        assert first.known_bus() == ""
        first.remember_bus("nats://10.0.0.1:4222")
    with claim(tmp_path, None) as second:
        assert second.known_bus() == "nats://10.0.0.1:4222"


@pytest.mark.parametrize("name", ["..", "a/b", "", "x\n", "x" * 129])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError), claim(tmp_path, name):
        pass


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/h"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/inference-mesh"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/inference-mesh"),
        ({"HOME": "/h"}, "/h/.local/state/inference-mesh"),
        ({}, "/var/lib/inference-mesh"),
    ],
)
def test_the_state_directory_is_where_the_system_says(environ: dict[str, str], folder: str) -> None:
    assert default_state_dir(environ) == Path(folder)
