"""Find the mesh by its bus: ``NATS_TOKEN=... python docs/examples/on_the_bus.py nats://127.0.0.1:4222``."""

import os
import sys

import numpy as np

from mesh import SyncClient

with SyncClient(sys.argv[1], nats_token=os.environ.get("NATS_TOKEN", "")) as client:
    a, b = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), dtype=np.int32)
    print(client.infer("simple", {"INPUT0": a, "INPUT1": b})["OUTPUT0"][0].tolist())
