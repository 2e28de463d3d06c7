"""The bar: a bare ASGI echo under uvicorn (httptools, uvloop, no access log), one process.

It reads the whole body and answers ``POST /`` with that body, ``POST /N`` with N bytes: a model rarely answers as much
as it is asked, and the bar shall move the same bytes as the agent it is compared with. Nothing is parsed but HTTP. Not
here: the environment it is started with (``serving`` starts a second one with a tuned malloc).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]


class Echo:
    """An ASGI application."""

    def __init__(self) -> None:
        self._replies: dict[str, bytes] = {}

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        message = await receive()
        body = message["body"]
        if message["more_body"]:
            chunks = [body]
            while message.get("more_body"):
                message = await receive()
                chunks.append(message.get("body", b""))
            body = b"".join(chunks)
        path = scope["path"]
        if path != "/":
            body = self._replies.get(path) or self._replies.setdefault(path, bytes(int(path[1:])))
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Announced(uvicorn.Server):
    """Prints ``ready http://HOST:PORT`` once it listens, as our own commands do."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()
        print(f"ready http://{host}:{port}", flush=True)


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    config = uvicorn.Config(
        Echo(), loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    Announced(config).run([listener])


if __name__ == "__main__":
    main()
