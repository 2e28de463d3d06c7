"""What every test lives under: nothing may leak, nothing of ours may block the loop, luck is seeded.

Here: the checks that apply to all tests, the hypothesis profiles, skips for what this machine lacks. Not here: values
built by hand (``builders``), real servers (``nats``), anything that one area of the tests needs.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import os
import random
import shutil
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test module can import onnxruntime

import psutil
import pytest
import pytest_asyncio
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
IN_CI = bool(os.environ.get("CI"))

GRACE_S = 20.0
"""How long what a test has already stopped may take to be gone; only a leak ever waits that long."""

PACKAGES = ("mesh", "edge", "cloud")
"""Whose coroutines may not block. ``hardware`` blocks by trade: its loops are in processes and threads of their own."""

MAY_BLOCK: tuple[tuple[str, str, str], ...] = (
    ("<frozen importlib._bootstrap>", "_find_and_load", "a lazy import reads files once in the life of a process"),
    ("subprocess.py", "_execute_child", "starting a process waits for its exec; asyncio's own way waits in it too"),
)
"""Known offenders: end of the file's name, function, and why it may."""


settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.register_profile(
    "thorough", deadline=None, max_examples=2_000, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IN_CI else "default"))


def _adopt_orphans() -> None:
    """Grandchildren whose parent dies become our children, so that a worker that outlives its agent is seen."""
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def pytest_configure() -> None:
    _adopt_orphans()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {mark: reason for mark, reason in _lacking().items() if reason}
    for item in items:
        for mark in lacking.keys() & {marker.name for marker in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=lacking[mark]))
        if pytest_asyncio.is_async_test(item) and "no_leaked_tasks" not in item.fixturenames:
            item.fixturenames.insert(0, "no_leaked_tasks")  # entered first, so left last


def _lacking() -> dict[str, str]:
    """What this machine cannot run, by marker; missing models are no excuse in CI, which fetches them."""
    namespaces = os.geteuid() == 0 and shutil.which("ip") is not None
    models = IN_CI or any((ROOT / "models").glob("*/*/model.onnx"))
    gpu = any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvmap"))
    return {
        "netns": "" if namespaces else "needs root and ip (iproute2)",
        "models": "" if models else "needs the models: make models",
        "hardware": "" if gpu else "needs a GPU",
    }


@pytest.fixture(scope="session", autouse=True)
def clean_environ() -> Iterator[None]:
    """The settings of whoever runs the tests are not the tests' settings."""
    found = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MESH_")}
    yield
    os.environ.update(found)


@pytest.fixture(autouse=True)
def seeded_random(request: pytest.FixtureRequest) -> None:
    """Each test has luck of its own, the same in every run."""
    random.seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call that may block, made on the loop from a coroutine of ours, raises ``BlockingError`` in it."""
    if not pytest_asyncio.is_async_test(request.node):
        yield
        return
    watch = BlockBuster([importlib.import_module(name) for name in PACKAGES])
    for name in [name for name in watch.functions if name.startswith("threading.Lock")]:
        del watch.functions[name]  # raises only when another thread happens to hold the lock: a matter of luck
    for function in watch.functions.values():
        for file, inside, _ in MAY_BLOCK:
            function.can_block_in(file, inside)
    watch.activate()
    yield
    watch.deactivate()


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Added to every async test: a task that is still running after all its fixtures were left is a failure."""
    before = asyncio.all_tasks()
    yield
    leaked = asyncio.all_tasks() - before - {asyncio.current_task()}
    if leaked:
        _, leaked = await asyncio.wait(leaked, timeout=GRACE_S)
    if leaked:
        pytest.fail("tasks leaked: " + ", ".join(sorted(map(repr, leaked))))


_Started = tuple[frozenset[threading.Thread], frozenset[psutil.Process]]
_BEFORE = pytest.StashKey[_Started]()


def _running() -> _Started:
    """Threads that keep the process alive, and child processes, adopted ones included.

    Threads of a loop's default executor end with their loop, which may be a module's.
    """
    threads = frozenset(t for t in threading.enumerate() if not t.daemon and not t.name.startswith("asyncio_"))
    return threads, frozenset(psutil.Process().children())


@pytest.fixture(autouse=True)
def no_leaked_processes(request: pytest.FixtureRequest) -> None:
    """Notes what runs when the test's own fixtures begin: what wider fixtures started before is theirs to stop."""
    request.node.stash[_BEFORE] = _running()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After everything of the test was torn down, its loop too: threads and processes it started are gone."""
    yield
    if (before := item.stash.get(_BEFORE, None)) is None:
        return  # it was skipped
    threads, children = (now - then for now, then in zip(_running(), before, strict=True))
    for thread in threads:
        thread.join(GRACE_S)
    _, leaked = psutil.wait_procs([child for child in children if _alive(child)], timeout=GRACE_S)
    names = [thread.name for thread in threads if thread.is_alive()]
    for child in leaked:
        names.append(_command_line(child))
        child.kill()
    if names:
        pytest.fail("threads or processes leaked: " + "; ".join(sorted(names)), pytrace=False)


def _alive(child: psutil.Process) -> bool:
    try:
        return bool(child.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _command_line(child: psutil.Process) -> str:
    try:
        return f"{child.pid} {' '.join(child.cmdline())}"
    except psutil.NoSuchProcess:
        return f"{child.pid} (gone just now)"
