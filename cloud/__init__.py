"""The cloud router: stateless replicas that route to every node of a mesh. It touches no device.

Not here: what every node speaks (``mesh``), running a model (``edge``).
"""
