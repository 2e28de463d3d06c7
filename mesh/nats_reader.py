"""nats-py's client, with a reader that nobody can end by what he publishes.

As it is, a subject that holds a vertical tab or form feed, which a server lets pass, closes the connection of every
subscriber; one that is not UTF-8, or headers cut short, leave it open and deaf. Here the first two are read, the others
dropped. Private names of nats-py 2.16, hence its pin. Not here: connecting (``nats_connection``).
"""

from __future__ import annotations

import logging
import re

from nats.aio.client import Client
from nats.protocol import parser

log = logging.getLogger(__name__)

# A server takes these only to separate arguments; nats-py's own patterns take all that Unicode calls space.
_SUBJECT, _SPACE = rb"([^ \t\r\n]+)", rb"[ \t]+"
_TO = _SPACE + _SUBJECT + _SPACE + rb"(\d+)" + _SPACE + rb"(" + _SUBJECT + _SPACE + rb")?"
parser.MSG_RE = re.compile(rb"\AMSG" + _TO + rb"(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG" + _TO + rb"(\d+)" + _SPACE + rb"(\d+)\r\n")


class Reader(Client):
    """Hands on what can be read, and goes on after what cannot."""

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, IndexError) as error:
            log.info("a message that cannot be read is dropped, subject %r: %r", subject[:200], error)
