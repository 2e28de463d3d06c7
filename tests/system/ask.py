"""An application on a host of a LAN: asks and prints each answer as a JSON line.

``python -m tests.system.ask async|sync`` asks the model ``pool`` once with no configuration at all; ``often URL MODEL``
asks until it is ended: ``pool`` sends large tensors, ``count`` keeps a node busy for long enough that others are asked
too. Not here: any test.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

from mesh import Client, MeshError, Result, SyncClient

X = np.full((1, 3, 224, 224), 0.25, dtype=np.float32)
N = 10_000
QUESTIONS: dict[str, dict[str, Any]] = {"pool": {"X": X}, "count": {"N": np.array(N, np.int64)}}
CALLERS = 4


async def once() -> Result:
    async with Client() as client:
        return await client.infer("pool", {"X": X})


def once_sync() -> Result:
    with SyncClient() as client:
        return client.infer("pool", {"X": X})


async def often(url: str, model: str) -> None:
    async def call(client: Client, caller: int) -> None:
        while True:
            await ask(client, model, caller)

    async with Client(url) as client:
        await asyncio.gather(*(call(client, caller) for caller in range(CALLERS)))


async def ask(client: Client, model: str, caller: int) -> None:
    try:
        say(await client.infer(model, QUESTIONS[model]), caller)
    except MeshError as error:
        print(json.dumps({"error": error.code, "text": error.text, "caller": caller}), flush=True)


def say(result: Result, caller: int = 0) -> None:
    y: Any = result["Y"].ravel().tolist()
    answer = {"node": result.node, "route": result.route, "hops": result.hops, "y": y, "caller": caller}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    mode, *urls = sys.argv[1:]
    if mode == "often":
        asyncio.run(often(*urls))
    else:
        say(asyncio.run(once()) if mode == "async" else once_sync())
