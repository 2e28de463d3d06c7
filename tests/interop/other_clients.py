"""``python -m tests.interop.other_clients``: kserve's and mlserver's clients at an agent and at a router.

They pin versions that do not go together, nor with ours, so that each has an environment of its own; ``--kserve`` and
``--mlserver`` name its interpreter. Not here: what is asked (``kserve_asks``, ``mlserver_asks``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from mesh.child import tied
from mesh.lifecycle import within
from tests.bench.report import show
from tests.interop.asked import KINDS, Asked, asked
from tests.models.make_triton import FOLDER

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ("kserve", "mlserver")
TIMEOUT_S = 120.0


async def said(python: str, client: str, door: Asked) -> dict[str, str]:
    """By check, why it failed, or nothing. Raises ``RuntimeError`` if the client could not even begin."""
    process = await asyncio.create_subprocess_exec(
        *tied([python, "-m", f"tests.interop.{client}_asks", door.http, door.grpc]),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await within(TIMEOUT_S, process.communicate())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{client}: {err.decode(errors='replace')[-800:]}")
    rows = json.loads(out.decode().splitlines()[-1])  # some print when they are imported
    return {row["check"]: row["why"] for row in rows}


async def outcomes(pythons: dict[str, str]) -> dict[tuple[str, str], dict[str, str]]:
    found = {}
    for kind in KINDS:
        async with asked(kind, FOLDER) as door:
            for client, python in pythons.items():
                found[client, kind] = await said(python, client, door)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.other_clients", description=__doc__)
    for client in CLIENTS:
        parser.add_argument(f"--{client}", metavar="PYTHON", help=f"interpreter of an environment that has {client}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    pythons = {client: python for client in CLIENTS if (python := getattr(arguments, client))}
    if not pythons:
        parser.error("name an interpreter: --kserve PYTHON, --mlserver PYTHON")
    found = asyncio.run(outcomes(pythons))
    rows = []
    for client in pythons:
        for check in found[client, KINDS[0]]:
            why = {kind: found[client, kind][check] for kind in KINDS}
            words = {kind: "fail" if why[kind] else "pass" for kind in KINDS}
            rows.append({"client": client, "check": check} | words | {"reason": "; ".join(filter(None, why.values()))})
    passed = sum(not why for checks in found.values() for why in checks.values())
    total = sum(len(checks) for checks in found.values())
    show(rows, [f"{passed} of {total} pass"], as_json=arguments.json)
    sys.exit(passed < total)


if __name__ == "__main__":
    main()
