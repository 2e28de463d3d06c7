"""What kind of file is this? Asks whatever door of the mesh answers: ``python docs/examples/infer.py FILE``.

The door is found by zeroconf, or named by ``MESH_URL``. The model is magika, which ``make models`` fetches.
"""

import sys
from pathlib import Path

from mesh import SyncClient
from mesh.demo.filetypes import features

KINDS = (Path(__file__).parents[2] / "models/magika/labels.txt").read_text().split()

with SyncClient() as client:
    tokens = features(Path(sys.argv[1]).read_bytes())
    result = client.infer("magika", {"bytes": tokens}, deadline_ms=5_000)
    kind = KINDS[result["target_label"].argmax()]
    print(f"{kind}, says {result.node} ({result.route})")
