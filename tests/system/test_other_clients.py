"""Other people's own scripts and clients, where whoever runs the tests has them: their sources are not ours to ship.

``TRITON_EXAMPLES`` names the folder of Triton's Python examples, ``KSERVE_PYTHON`` and ``MLSERVER_PYTHON`` interpreters
of environments that have these (docs/interop.md). Not here: what the examples do, done by us (``test_interop``).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from mesh.child import tied
from tests.interop.other_clients import CLIENTS
from tests.system.processes import ROOT


async def report(*argv: str) -> list[dict[str, str]]:
    """The rows that a module of ``tests.interop`` prints, whether or not all is well."""
    process = await asyncio.create_subprocess_exec(
        *tied([sys.executable, "-m", *argv, "--json"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    out, err = await process.communicate()
    assert out, err.decode()
    rows: list[dict[str, str]] = json.loads(out)["rows"]
    return rows


@pytest.mark.timeout(900)
@pytest.mark.skipif("TRITON_EXAMPLES" not in os.environ, reason="TRITON_EXAMPLES names no folder of Triton's examples")
async def test_tritons_own_examples() -> None:
    rows = await report("tests.interop.triton_examples", "--examples", os.environ["TRITON_EXAMPLES"])
    assert [row for row in rows if "fail" in (row["agent"], row["router"])] == []
    assert sum(row["agent"] == row["router"] == "pass" for row in rows) >= 30


@pytest.mark.timeout(600)
@pytest.mark.parametrize("client", CLIENTS)
async def test_other_clients(client: str) -> None:
    python = os.environ.get(f"{client.upper()}_PYTHON")
    if not python:
        pytest.skip(f"{client.upper()}_PYTHON names no interpreter that has {client}")
    rows = await report("tests.interop.other_clients", f"--{client}", python)
    assert [row for row in rows if row["agent"] != "pass" or row["router"] != "pass"] == []
    assert len(rows) >= 7
