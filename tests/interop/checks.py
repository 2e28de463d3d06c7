"""What a client tried, told from its interpreter to ours: one JSON list on stdout.

Runs in environments that have neither our packages nor their dependencies: the standard library alone. Not here: the
clients (``kserve_asks``, ``mlserver_asks``), who starts them (``other_clients``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping

Check = Callable[[str, str], Awaitable[None]]
"""Asks at HOST:PORT of an HTTP and of a gRPC door, and raises if the answer is not right."""


async def tried(checks: Mapping[str, Check], http: str, grpc: str) -> list[dict[str, str]]:
    """``why`` is empty where it went well."""
    rows = []
    for name, check in checks.items():
        try:
            await check(http, grpc)
            why = ""
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:200]
        rows.append({"check": name, "why": why})
    return rows


def main(checks: Mapping[str, Check]) -> None:
    """The doors are the two arguments of the command line."""
    print(json.dumps(asyncio.run(tried(checks, *sys.argv[1:3]))))
