"""Ask whatever door zeroconf finds on this network; ``mesh`` keeps to one mesh id."""

import os

import numpy as np

from mesh import SyncClient

with SyncClient(mesh=os.environ.get("MESH_ID")) as client:
    a, b = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), dtype=np.int32)
    print(client.infer("simple", {"INPUT0": a, "INPUT1": b})["OUTPUT0"][0].tolist())
