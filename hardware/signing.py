"""The secret of this device, and signatures under it: what it wrote itself it knows again, and nothing else.

A plan of TensorRT is code, so that a checksum beside it is not enough: whoever can put a plan there can put its
checksum there too (DESIGN D7). Not here: what is signed (``engine_cache``, ``timing_cache``).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import stat
from pathlib import Path

from hardware import durable
from hardware.errors import EngineNotBuilt

SECRET_BYTES = 32


def read_secret(key_file: Path) -> bytes:
    """The secret; raises ``EngineNotBuilt`` where there is none, or others may read it."""
    try:
        mode = key_file.stat().st_mode
        secret = durable.read(key_file, SECRET_BYTES)
    except OSError as error:
        raise EngineNotBuilt(f"the device's key file cannot be read: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise EngineNotBuilt(f"the device's key file {key_file.name} is open to other users: chmod 600")
    if len(secret) != SECRET_BYTES:
        raise EngineNotBuilt(f"the device's key file {key_file.name} is damaged: remove it, and engines are built anew")
    return secret


def make_secret(key_file: Path) -> bytes:
    """The secret, made now if there is none; of several processes that make one at once, all get the same."""
    try:
        if not key_file.exists():
            key_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was quicker
                durable.create(key_file, secrets.token_bytes(SECRET_BYTES))
    except OSError as error:
        raise EngineNotBuilt(f"the device's key file cannot be made: {error.strerror}") from None
    return read_secret(key_file)


def sign(secret: bytes, purpose: str, data: bytes) -> str:
    """HMAC-SHA256 in hex; a signature for one ``purpose`` is none for another."""
    return hmac.new(secret, purpose.encode() + b"\0" + data, hashlib.sha256).hexdigest()


def is_signed(secret: bytes, purpose: str, data: bytes, signature: str) -> bool:
    return hmac.compare_digest(sign(secret, purpose, data).encode(), signature.encode())
