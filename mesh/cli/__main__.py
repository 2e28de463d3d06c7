"""``python -m mesh.cli``: the ``mesh`` command where its script is not on PATH. Nothing else."""

from mesh.cli import main

main()
