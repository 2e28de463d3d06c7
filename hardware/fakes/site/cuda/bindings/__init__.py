"""Stand-in for ``cuda.bindings`` in processes that tests start. Not here: the runtime (``runtime``)."""
