"""Answers as they come, of a model that gives any number: ``python docs/examples/stream.py http://127.0.0.1:8000``."""

import sys

import numpy as np

from mesh import SyncClient

with SyncClient(sys.argv[1]) as client:
    numbers = np.arange(4, dtype=np.int32)
    delays, wait = np.full(4, 10, dtype=np.uint32), np.zeros(1, dtype=np.uint32)
    for answer in client.stream("repeat_int32", {"IN": numbers, "DELAY": delays, "WAIT": wait}):
        print(int(answer["OUT"][0]))
