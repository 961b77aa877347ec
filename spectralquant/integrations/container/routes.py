"""Vertex AI's routes on a vLLM server: an ASGI layer, given to `vllm serve --middleware`."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
MODEL_ROUTE = "/invocations"


class VertexRoutes:
    """`AIP_HEALTH_ROUTE` is `/health`; `AIP_PREDICT_ROUTE` takes `{"instances": [request, …]}` and answers `{"predictions": […]}`.

    A request is what vLLM's own routes take (chat, completion, …). A body without `instances` is one request, and its answer,
    streams included, goes back as it is. Where one instance fails, its error is its prediction's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._health, self._predict = (os.environ.get(f"AIP_{name}_ROUTE") for name in ("HEALTH", "PREDICT"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        path = scope.get("path")
        if scope["type"] != "http" or path not in (self._health, self._predict):
            await self._app(scope, receive, send)
        elif path == self._health:
            await self._app(_at(scope, "/health"), receive, send)
        else:
            await self._predicted(scope, receive, send)

    async def _predicted(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            instances = json.loads(body)["instances"]
        except (ValueError, KeyError, TypeError):
            instances = None
        if not isinstance(instances, list):
            await self._app(_at(scope, MODEL_ROUTE, body), _once(body, receive), send)
            return
        predictions = [await self._one(scope, json.dumps(instance).encode(), receive) for instance in instances]
        answer = json.dumps({"predictions": predictions}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _one(self, scope: Scope, body: bytes, receive: Receive) -> Any:
        parts: list[bytes] = []

        async def collect(message: MutableMapping[str, Any]) -> None:
            parts.append(message.get("body", b""))

        await self._app(_at(scope, MODEL_ROUTE, body), _once(body, receive), collect)
        text = b"".join(parts)
        try:
            return json.loads(text)
        except ValueError:
            return {"error": text.decode(errors="replace")}


def _at(scope: Scope, path: str, body: bytes | None = None) -> Scope:
    """The same request at another path, and with another body's length."""
    headers = scope["headers"]
    if body is not None:
        kept = [
            (name, value) for name, value in headers if name.lower() not in (b"content-length", b"transfer-encoding")
        ]
        headers = [*kept, (b"content-length", str(len(body)).encode())]
    return {**scope, "path": path, "raw_path": path.encode(), "headers": headers}


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _once(body: bytes, receive: Receive) -> Receive:
    """A request's body, then what the connection says: vLLM gives a request up when it hears that its client has gone."""
    waiting = [body]

    async def first_the_body() -> MutableMapping[str, Any]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return first_the_body
