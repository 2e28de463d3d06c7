"""What ``mesh doctor --acceptance`` drives: every backend of this box, on real models, with known answers.

Runs as a process of its own, ``python -m hardware.acceptance``, which says one finding a line. Not here: what a person
sees (``mesh.cli.acceptance``), any backend.
"""
