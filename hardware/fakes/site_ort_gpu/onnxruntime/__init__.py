"""Stands before the real onnxruntime where tests put this on PYTHONPATH. What it does: ``hardware.fakes.ort_gpu``."""

import sys

from hardware.fakes import ort_gpu
from hardware.fakes.behind import import_behind

if __name__ == "onnxruntime":  # not as a part of this project
    sys.modules[__name__] = import_behind(__name__, ort_gpu.simulated)
