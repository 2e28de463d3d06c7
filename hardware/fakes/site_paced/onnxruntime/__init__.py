"""Stands before the real onnxruntime where tests put this on PYTHONPATH. What it does: ``hardware.fakes.paced``."""

import sys

from hardware.fakes import paced
from hardware.fakes.behind import import_behind

if __name__ == "onnxruntime":  # not as a part of this project
    sys.modules[__name__] = import_behind(__name__, paced.paced)
