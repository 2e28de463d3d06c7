"""Devices and the runtimes on them: what turns tensors into tensors. Imports nothing of the mesh.

``runtime`` is the seam; ``worker_runtime`` and ``inline_runtime`` implement it; ``sessions`` picks a backend, and
``validate`` judges a model file before a backend sees it. Not here: models' life cycle, batching, deadlines, restarts
(``edge``), anything that travels between nodes (``mesh``).
"""
