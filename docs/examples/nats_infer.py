"""What kind of file is this? Asks a router over the bus with plain nats-py and JSON, and nothing else of ours:

``NATS_URL=nats://127.0.0.1:4222 python docs/examples/nats_infer.py FILE``
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import nats

KINDS = (Path(__file__).parents[2] / "models/magika/labels.txt").read_text().split()
SIDE, PADDING, DEADLINE_S = 1024, 256, 5.0


async def ask(content: bytes) -> str:
    start, end = content[:4096].lstrip()[:SIDE], content[-4096:].rstrip()[-SIDE:]
    tokens = [*start, *[PADDING] * (2 * SIDE - len(start) - len(end)), *end]
    tensor = {"name": "bytes", "datatype": "INT32", "shape": [1, 2 * SIDE], "data": tokens}
    request = {"inputs": [tensor], "parameters": {"timeout": int(DEADLINE_S * 1e6)}}
    bus = await nats.connect(os.environ["NATS_URL"], token=os.environ.get("NATS_TOKEN"))
    try:
        reply = await bus.request("mesh.v1.infer.magika", json.dumps(request).encode(), timeout=DEADLINE_S)
    finally:
        await bus.close()
    if error := (reply.headers or {}).get("Nats-Service-Error"):
        sys.exit(f"refused: {error}")
    scores = json.loads(reply.data)["outputs"][0]["data"]
    return KINDS[scores.index(max(scores))]


print(asyncio.run(ask(Path(sys.argv[1]).read_bytes())))
