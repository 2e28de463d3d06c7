"""The agent: one process on each box that holds models, an edge device or a cloud GPU alike.

Not here: what every node speaks (``mesh``), runtimes and sensors (``hardware``).
"""
