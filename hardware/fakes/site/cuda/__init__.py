"""Stand-in for NVIDIA's ``cuda`` in processes that tests start with this folder on PYTHONPATH. Not here: anything."""
