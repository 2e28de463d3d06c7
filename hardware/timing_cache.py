"""TensorRT's measured times of kernels, kept between builds: one file for each version of TensorRT and kind of device.

They only save time, so that whatever is wrong with a file means to start afresh, and a full disk costs nothing else.
Signed like plans, for TensorRT parses them. Not here: engines (``engine_cache``).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from hardware import durable, signing

log = logging.getLogger(__name__)

MAX_BYTES = 256 * 1024**2
_PURPOSE = "timings"
_SIGNATURE_BYTES = 64


class TimingCache:
    def __init__(self, folder: Path, version: str, device: str, secret: bytes) -> None:
        name = hashlib.sha256(f"{version}\0{device}".encode()).hexdigest()[:16]
        self.path = folder / f"timings-{name}"
        self._purpose = f"{_PURPOSE} {version} {device}"
        self._secret = secret

    def read(self) -> bytes:
        """What was kept; empty if nothing was, or it is not of this device and version."""
        try:
            data = durable.read(self.path, MAX_BYTES)
        except OSError:
            return b""
        signature, timings = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
        if not signing.is_signed(self._secret, self._purpose, timings, signature.decode("ascii", "replace")):
            return b""
        return timings

    def update(self, merge: Callable[[bytes], bytes]) -> None:
        """Keep what ``merge`` makes of what is kept by now: another process may have added to it."""
        try:
            with durable.locked(self.path.with_name(f"{self.path.name}.lock")):
                timings = merge(self.read())
                if len(timings) + _SIGNATURE_BYTES <= MAX_BYTES:
                    signature = signing.sign(self._secret, self._purpose, timings)
                    durable.replace(self.path, signature.encode() + timings)
        except OSError as error:
            log.warning("the timing cache is not kept: %s", error.strerror)
