"""A model that remembers: ``python docs/examples/sequence.py http://127.0.0.1:8000``.

Steps are numbered and go on elsewhere, with the state, when the node that holds the sequence is gone.
"""

import sys

import numpy as np

from mesh import SyncClient

with SyncClient(sys.argv[1]) as client, client.sequence("running_sum") as sequence:
    for number in (1, 2, 3, 4):
        result = sequence.infer({"INPUT": np.array([[number]], dtype=np.int64)}, end=number == 4)
        print(int(result["OUTPUT"][0, 0]))
