"""Ask a router over the bus, with plain nats-py and JSON and nothing else of ours:

``NATS_URL=nats://127.0.0.1:4222 NATS_TOKEN=... python docs/examples/nats_infer.py``
"""

import asyncio
import json
import os
import sys

import nats

ROW = {"datatype": "INT32", "shape": [1, 16], "data": [*range(16)]}
REQUEST = {"inputs": [{"name": "INPUT0", **ROW}, {"name": "INPUT1", **ROW}], "parameters": {"timeout": 5_000_000}}


async def main() -> None:
    async with await nats.connect(os.environ["NATS_URL"], token=os.environ.get("NATS_TOKEN")) as bus:
        reply = await bus.request("mesh.v1.infer.simple", json.dumps(REQUEST).encode(), timeout=5)
        if error := (reply.headers or {}).get("Nats-Service-Error"):
            sys.exit(f"refused: {error}")
        print(json.loads(reply.data)["outputs"][0]["data"])


asyncio.run(main())
