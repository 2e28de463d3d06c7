"""Frames to and from a worker over non-blocking pipes, in as few system calls as they allow.

Requests to an idle worker are written at once, those to a busy one once per loop iteration; one read takes whatever
replies have come. Not here: what the frames mean (``worker_runtime``), the worker's side, which blocks (``worker``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import msgspec

from hardware.arena import Slot
from hardware.errors import InvalidInput, WorkerDied
from hardware.frames import MAX_FRAME_BYTES, Order, Reader, Reply, Request, append, decode_reply, encode_order

_READ_BYTES = 65536


class Channel:
    """Owns the ``pipes``: requests, replies, and the control pipe, which overtakes requests.

    ``on_reply`` is called for each reply and raises ``ValueError`` for one that makes no sense, ``on_read`` after each
    batch of them, ``on_broken`` once, when the other side hangs up or, with the reason, does not speak the protocol.
    """

    def __init__(
        self,
        pipes: tuple[int, int, int],
        on_reply: Callable[[Reply], None],
        on_read: Callable[[], None],
        on_broken: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._requests_fd, self._replies_fd, self._control_fd = pipes
        self._on_reply = on_reply
        self._on_read = on_read
        self._on_broken = on_broken
        self._reader = Reader()
        self._outbox = bytearray()
        self._flush_due = False
        self._writer_set = False
        self._reading = True
        self._loop.add_reader(self._replies_fd, self._readable)

    def send(self, message: Request, *, at_once: bool) -> None:
        """Queue one frame; raises ``InvalidInput`` where it is too long."""
        start = len(self._outbox)
        append(self._outbox, message)
        if len(self._outbox) - start > MAX_FRAME_BYTES:
            del self._outbox[start:]
            raise InvalidInput("the names in the request are too long")
        if self._writer_set or self._flush_due:
            return
        if at_once:
            self._flush()
        else:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def abandon(self, slot: Slot) -> None:
        """Tell the worker that nobody wants the run in ``slot``, ahead of the requests it has not read yet."""
        if self._control_fd < 0:
            return
        # With the pipe full of earlier ones the run just goes on; a worker that ends gives no answer either way.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._control_fd, encode_order(Order(False, slot)))

    def go_on(self, slot: Slot) -> None:
        """Tell the worker that the last part in ``slot`` was taken. Raises ``WorkerDied`` where it does not listen."""
        if self._control_fd < 0:
            return
        with contextlib.suppress(BrokenPipeError):  # the process is ending, and its exit tells
            try:
                os.write(self._control_fd, encode_order(Order(True, slot)))
            except BlockingIOError:
                raise WorkerDied("the worker process does not read its control pipe") from None

    def drain(self) -> None:
        """Take every reply that was written before the other side ended."""
        while self._reading and self._read():
            pass

    def hang_up(self) -> None:
        """Close the request side, dropping what was not written; the worker ends when it has read the rest."""
        if self._requests_fd < 0:
            return
        if self._writer_set:
            self._loop.remove_writer(self._requests_fd)
        os.close(self._requests_fd)
        os.close(self._control_fd)
        self._requests_fd = self._control_fd = -1
        self._outbox.clear()

    def close(self) -> None:
        self.hang_up()
        self._stop_reading()
        if self._replies_fd >= 0:
            os.close(self._replies_fd)
            self._replies_fd = -1

    def _flush(self) -> None:
        self._flush_due = False
        if self._requests_fd < 0:
            return
        try:
            sent = os.write(self._requests_fd, self._outbox)
        except BlockingIOError:
            sent = 0
        except BrokenPipeError:  # the process is ending, and its exit tells
            sent = len(self._outbox)
        del self._outbox[:sent]
        if bool(self._outbox) == self._writer_set:
            return
        self._writer_set = not self._writer_set
        if self._writer_set:
            self._loop.add_writer(self._requests_fd, self._flush)
        else:
            self._loop.remove_writer(self._requests_fd)

    def _readable(self) -> None:
        if self._read():
            self._on_read()

    def _read(self) -> bool:
        """Read once; False when there is nothing, now or for ever."""
        try:
            chunk = os.read(self._replies_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._break("")
            return False
        try:
            for frame in self._reader.feed(chunk):
                self._on_reply(decode_reply(frame))
        except (ValueError, msgspec.MsgspecError) as error:
            self._break(f"after an answer that is none: {error}")
            return False
        return True

    def _break(self, reason: str) -> None:
        self._stop_reading()
        self._on_broken(reason)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._replies_fd)
