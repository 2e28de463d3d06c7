"""Stand-in for ``tensorrt`` in processes that tests start with this folder on PYTHONPATH. Not here: what it does."""

from hardware.fakes import trt

globals().update(vars(trt.module()) | {"__name__": __name__, "__spec__": __spec__, "__doc__": __doc__})
