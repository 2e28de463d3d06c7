"""Many requests at once: ``python docs/examples/async_infer.py http://127.0.0.1:8000``."""

import asyncio
import sys

import numpy as np

from mesh import Client


async def main() -> None:
    async with Client(sys.argv[1]) as client:
        rows = [np.full((1, 16), n, dtype=np.int32) for n in range(8)]
        results = await asyncio.gather(*(client.infer("simple", {"INPUT0": r, "INPUT1": r}) for r in rows))
        print([int(result["OUTPUT0"][0, 0]) for result in results])


asyncio.run(main())
