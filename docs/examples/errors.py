"""Errors by type: ``python docs/examples/errors.py http://127.0.0.1:8000``."""

import sys

import numpy as np

from mesh import SyncClient
from mesh.errors import DeadlineExceeded, InvalidRequest, ModelNotFound, Overloaded, Unavailable

with SyncClient(sys.argv[1]) as client:
    try:
        client.infer("no_such_model", {"X": np.zeros(1, dtype=np.float32)}, deadline_ms=1_000)
    except (InvalidRequest, ModelNotFound) as error:
        print(f"ask otherwise: {error.text}")
    except (DeadlineExceeded, Overloaded, Unavailable) as error:
        print(f"ask later: {error.text}")
