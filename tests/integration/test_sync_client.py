"""The SDK in plain code: threads, Ctrl-C, streams left early, use after the end, forks, the interpreter's end.

The door is in this process, on a loop of its own; its models are scripted (``tests.streams``). Not here: what the calls
do (``test_client``), their life on a loop (``test_client_life``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from mesh.client import Client
from mesh.client_sequence import ClientSequence
from mesh.errors import ConfigError, InvalidRequest
from mesh.loop_thread import LoopThread
from mesh.messages import ModelLoad
from mesh.sync_client import SyncClient, SyncSequence
from tests.builders import DIGEST
from tests.fakes import until
from tests.nats import PATIENCE_S
from tests.streams import COUNT, CountingModels, counting_node

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
X = {"X": np.zeros(1, np.uint8)}
LONG_MS = 3_600_000.0


class Served:
    """A door on the loop of a thread, and the models behind it."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._stack = contextlib.AsyncExitStack()
        self.url, self.models = thread.call(self._serve())

    async def _serve(self) -> tuple[str, CountingModels]:
        models = CountingModels()
        models.loads.append(ModelLoad("plain", "1", DIGEST, "READY", service_ms=5.0))
        door = await self._stack.enter_async_context(counting_node(models, "holder"))
        return door.address, models

    def until(self, condition: Callable[[], bool]) -> None:
        self._thread.call(until(condition))

    def hold(self) -> asyncio.Event:
        """Answers of ``plain`` wait from now on."""
        held = self.models.hold = asyncio.Event()
        return held

    def release(self, held: asyncio.Event) -> None:
        self._thread.call(_set(held))

    def close(self) -> None:
        self._thread.call(self._stack.aclose())

    def client(self) -> SyncClient:
        return SyncClient(self.url, deadline_ms=LONG_MS)


async def _set(event: asyncio.Event) -> None:
    event.set()


@pytest.fixture
def served() -> Iterator[Served]:
    thread = LoopThread("door")
    thread.start()
    try:
        served = Served(thread)
        yield served
        served.close()
    finally:
        thread.stop()


def test_many_threads_share_a_client(served: Served) -> None:
    with served.client() as client, ThreadPoolExecutor(8) as threads:

        def ask(number: int) -> list[int]:
            if number % 2:
                assert client.infer("plain", X).node == "holder"
            return [int(result["N"][0]) for result in client.stream(COUNT, X, parameters={"times": number})]

        assert list(threads.map(ask, range(40))) == [list(range(number)) for number in range(40)]
        assert client.doors == [served.url]


def test_who_waits_in_another_thread_when_the_client_is_closed_is_told(served: Served) -> None:
    held = served.hold()
    with ThreadPoolExecutor(2) as threads:
        with served.client() as client:
            results = client.stream(COUNT, X, parameters={"times": 9, "hold_at": 0})
            waiting = [threads.submit(client.infer, "plain", X), threads.submit(next, results)]
            served.until(lambda: bool(served.models.served) and served.models.running == 1)
        for each in waiting:
            with pytest.raises(RuntimeError, match="the client was closed"):
                each.result(PATIENCE_S)
    served.release(held)
    served.until(lambda: served.models.running == 0)


def test_after_the_end_everything_says_so(served: Served) -> None:
    with served.client() as client:
        sequence = client.sequence("plain")
        results = client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3})
        next(results)
    served.until(lambda: served.models.running == 0)
    for work in (
        lambda: client.infer("plain", X),
        lambda: next(client.stream("plain", X)),
        lambda: next(results),
        lambda: client.sequence("plain"),
        lambda: sequence.infer(X),
        client.models,
        lambda: client.doors,
    ):
        with pytest.raises(RuntimeError, match="not open"):
            work()
    with sequence:
        pass
    with client:  # again, on a new loop
        assert client.infer("plain", X).node == "holder"
        with pytest.raises(RuntimeError, match="open already"):
            client.__enter__()
        assert client.infer("plain", X).node == "holder"


def test_a_generator_that_outlives_its_client_ends_in_silence(served: Served) -> None:
    with served.client() as client:
        results = client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3})
        next(results)
    results.close()


def test_a_stream_that_is_left_ends_at_the_node(served: Served) -> None:
    with served.client() as client:
        for _ in client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3}):
            break
        served.until(lambda: served.models.running == 0)
        with pytest.raises(ZeroDivisionError):
            _fail_in(client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3}))
        served.until(lambda: served.models.running == 0)


def _fail_in(results: Iterator[Any]) -> None:
    for _ in results:
        raise ZeroDivisionError


def test_a_stream_that_is_collected_on_the_clients_own_thread_ends_too(served: Served) -> None:
    with served.client() as client:
        circle: list[Any] = [client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3})]
        circle.append(circle)
        next(circle[0])
        gc.disable()
        try:
            del circle
            client._thread.call(_collect())
        finally:
            gc.enable()
        served.until(lambda: served.models.running == 0)
        assert client.infer("plain", X).node == "holder"


async def _collect() -> None:
    gc.collect()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whoever starts the tests in the background of a shell has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("what", ["infer", "first", "later"])
def test_ctrl_c_ends_what_is_waited_for(served: Served, what: str) -> None:
    held = served.hold()

    def press() -> None:
        served.until(lambda: bool(served.models.served) if what == "infer" else served.models.running == 1)
        if what == "later":
            served.until(lambda: served.models.produced == 3)
        signal.pthread_kill(main, signal.SIGINT)

    main, key = threading.get_ident(), threading.Thread(target=press)
    with served.client() as client:
        results = client.stream(COUNT, X, parameters={"times": 9, "hold_at": 3 if what == "later" else 0})
        key.start()
        with pytest.raises(KeyboardInterrupt):
            client.infer("plain", X) if what == "infer" else [*results]
        key.join()
        served.until(lambda: served.models.running == 0)
        served.release(held)
        assert client.infer("plain", X).node == "holder"


def test_errors_of_the_caller_are_told_in_the_callers_thread(served: Served) -> None:
    with served.client() as client:
        with pytest.raises(InvalidRequest):
            client.infer("plain", {"X": np.zeros(1, np.complex64)})
        with pytest.raises(InvalidRequest):
            next(client.stream("plain", {"X": np.zeros(1, np.complex64)}))
    with pytest.raises(ConfigError):
        SyncClient(served.url, retry_ratio=2.0).__enter__()


def run(script: str, *arguments: str) -> tuple[int, str, str]:
    """Of a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


LEFT_OPEN = """
import sys, numpy as np
from mesh import SyncClient
client = SyncClient(sys.argv[1]).__enter__()
results = client.stream("count", {"X": np.zeros(1, np.uint8)}, parameters={"times": 9, "hold_at": 3})
print(int(next(results)["N"][0]))
"""


def test_a_client_that_is_left_open_does_not_hold_up_the_end_of_the_interpreter(served: Served) -> None:
    assert run(LEFT_OPEN, served.url) == (0, "0\n", "")
    served.until(lambda: served.models.running == 0)


FORKED = """
import os, sys, warnings, numpy as np
from mesh import SyncClient
warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of the fork itself
X = {"X": np.zeros(1, np.uint8)}
with SyncClient(sys.argv[1]) as client:
    client.infer("plain", X)
    results = client.stream("count", X, parameters={"times": 9})
    next(results)
    if (child := os.fork()) == 0:
        try:
            client.infer("plain", X)
        except RuntimeError as error:
            print(error, flush=True)
    else:
        assert os.waitpid(child, 0)[1] == 0
        assert client.infer("plain", X).node == "holder"
        print(len(list(results)), flush=True)
with SyncClient(sys.argv[1]) as client:
    client.infer("plain", X)
"""


def test_a_fork_takes_no_client_along(served: Served) -> None:
    said = "the client was opened in another event loop, or before a fork: open one there\n8\n"
    assert run(FORKED, served.url) == (0, said, "")


@pytest.mark.parametrize(
    ("plain", "waiting"), [(SyncClient, Client), (SyncSequence, ClientSequence)], ids=["client", "sequence"]
)
def test_plain_code_takes_what_code_with_a_loop_takes(plain: type, waiting: type) -> None:
    names = {name for name in vars(waiting) if not name.startswith("_")}
    assert {name for name in vars(plain) if not name.startswith("_")} == names
    for name in {*names, "__init__"} - ({"__init__"} if plain is SyncSequence else set()):
        if not isinstance(getattr(plain, name), property):
            parameters = [list(inspect.signature(getattr(kind, name)).parameters.values()) for kind in (plain, waiting)]
            assert parameters[0] == parameters[1], name
