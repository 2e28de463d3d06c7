"""An ASGI application that answers whole, such as Starlette's pages, behind a connection of ours.

Not here: streaming in either direction, lifespan, websockets; nothing in the mesh needs them.
"""

from __future__ import annotations

from typing import Any

from mesh.http_answer import Answer
from mesh.http_connection import App, Request
from mesh.http_head import lines


def asgi_app(app: Any) -> App:
    """``app`` as an :data:`mesh.http_connection.App`; what it raises, this raises."""

    async def call(request: Request) -> Answer:
        head = request.head
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": head.method,
            "scheme": "http",
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": head.query,
            "root_path": "",
            "headers": list(head.headers.items()),
            "client": None,
            "server": None,
        }
        answer = Answer(500, b"", ())

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(request.body), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.head = lines((k, v) for k, v in message["headers"] if k != b"content-length")
            else:
                answer.parts += (message.get("body", b""),)

        await app(scope, receive, send)
        return answer

    return call
