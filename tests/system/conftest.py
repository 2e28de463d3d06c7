"""One event loop for each module of system tests, so that its tests can share processes. Nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.conftest import GRACE_S


@pytest_asyncio.fixture(loop_scope="module")
async def no_leaked_tasks() -> AsyncIterator[None]:
    """As for every test, on the module's loop."""
    before = asyncio.all_tasks()
    yield
    leaked = asyncio.all_tasks() - before - {asyncio.current_task()}
    if leaked:
        _, leaked = await asyncio.wait(leaked, timeout=GRACE_S)
    if leaked:
        pytest.fail("tasks leaked: " + ", ".join(sorted(map(repr, leaked))))
