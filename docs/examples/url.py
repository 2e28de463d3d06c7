"""Ask the door at a URL: ``python docs/examples/url.py http://127.0.0.1:8000``."""

import sys

import numpy as np

from mesh import SyncClient

with SyncClient(sys.argv[1]) as client:
    a, b = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), dtype=np.int32)
    result = client.infer("simple", {"INPUT0": a, "INPUT1": b}, deadline_ms=5_000)
    print(result["OUTPUT0"][0].tolist())
