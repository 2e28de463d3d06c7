"""The transport of an HTTP connection, in memory. Not here: what is sent over it (``unit/test_http_connection``)."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh.http_connection import HttpConnection


class Pipe(asyncio.Transport):
    """Takes what is written; while ``stuck`` nobody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.stuck = False
        self.paused = False
        self.closed = False
        self.ended = False
        self.protocol: HttpConnection
        self._unsent = 0
        self._high = 64 * 1024

    def write(self, data: Any) -> None:
        assert not self.ended
        self.sent += bytes(data)
        if self.stuck:
            self._unsent += len(data)
            if self._unsent > self._high:
                self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def read_all(self) -> None:
        self.stuck, self._unsent = False, 0
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 * 1024 if high is None else high

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    close = abort
