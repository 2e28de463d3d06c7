"""Leave a stream early, and the model stops: ``python docs/examples/async_stream.py http://127.0.0.1:8000``."""

import asyncio
import contextlib
import sys

import numpy as np

from mesh import Client

INPUTS = {
    "IN": np.arange(1000, dtype=np.int32),
    "DELAY": np.full(1000, 5, dtype=np.uint32),
    "WAIT": np.zeros(1, dtype=np.uint32),
}


async def main() -> None:
    async with Client(sys.argv[1]) as client, contextlib.aclosing(client.stream("repeat_int32", INPUTS)) as answers:
        async for answer in answers:
            print(int(answer["OUT"][0]))
            if answer["OUT"][0] == 2:
                break


asyncio.run(main())
