"""The bar of the bus: a plain nats-py responder; a request to ``bench.reply.N`` is answered with N bytes.

Not here: the client (``clients``), the server (``processes.nats_server``).
"""

from __future__ import annotations

import asyncio
import signal
import sys

import nats
import uvloop
from nats.aio.msg import Msg

SUBJECT = "bench.reply"


async def _serve(url: str) -> None:
    replies: dict[str, bytes] = {}

    async def answer(message: Msg) -> None:
        count = message.subject.rpartition(".")[2]
        await message.respond(replies.get(count) or replies.setdefault(count, bytes(int(count))))

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await nats.connect(url)
    await client.subscribe(f"{SUBJECT}.*", cb=answer)
    await client.flush()
    print(f"ready {url}", flush=True)
    await stop.wait()
    await client.close()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
