"""ASGI middleware that compresses complete responses.

A response without Content-Length, or in several parts, passes unchanged: a view that streams uses
`service.http.compression.stream_compressor`.
"""

from typing import Any

from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart

from service.config import Settings
from service.http.compression import (
    MIN_SIZE,
    SECRET,
    Coding,
    CompressedBodies,
    coded_headers,
    is_compressible,
    tag_with,
)
from service.http.context import RequestContext, context_of
from service.http.headers import parse_headers
from service.http.responses import etag


class CompressionMiddleware:
    """Wraps an ASGI application, and compresses its responses."""

    def __init__(self, app: Quart, inner: ASGIFramework, bodies: CompressedBodies) -> None:
        self._app = app
        self._inner = inner
        self._bodies = bodies

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        coding = parse_headers(scope["headers"]).coding if scope["type"] == "http" else None
        if coding is None:
            return await self._inner(scope, receive, send)
        context = context_of(scope)
        start: Any = None  # of a response that may be compressed; waits for the body

        async def send_coded(message: Any) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                if self._is_compressible(context, message):
                    start = message
                    return
                if message["status"] == 304:
                    message = _not_modified(context, coding, message)
            elif start is not None:
                first, start = start, None
                # The response to HEAD may have the length of a body, and no body.
                if len(message.get("body", b"")) > MIN_SIZE and not message.get("more_body", False):
                    first, message = await self._compress(coding, first, message)
                await send(first)
            await send(message)

        return await self._inner(scope, receive, send_coded)

    def _is_compressible(self, context: RequestContext, start: Any) -> bool:
        headers = dict(start["headers"])
        length = headers.get(b"content-length")
        if length is None or not is_compressible(headers, int(length)):
            return False
        if context.matched is None:
            return True
        view = self._app.view_functions[context.matched[0].endpoint]
        return not hasattr(view, SECRET)

    async def _compress(self, coding: Coding, start: Any, message: Any) -> tuple[Any, Any]:
        headers, body = start["headers"], message["body"]
        tag = dict(headers).get(b"etag")
        digest = etag(body) if tag is not None else None
        if tag is not None and tag != f'"{digest}"'.encode():
            # A view has made this tag, and compares it with If-None-Match itself.
            tag = tag if tag.startswith(b"W/") else b"W/" + tag
        elif tag is not None:
            tag = tag_with(coding, tag)
        data = await self._bodies.compress(coding, body, digest)
        headers = coded_headers(headers, coding, len(data), tag)
        return {**start, "headers": headers}, {**message, "body": data}


def _not_modified(context: RequestContext, coding: Coding, start: Any) -> Any:
    """Return the start of a 304, with the ETag of the response that it replaces."""
    if context.unchanged is None:
        return start
    media, size = context.unchanged
    if not is_compressible({b"content-type": media.encode()}, size):
        return start
    headers = [
        (name, tag_with(coding, value) if name == b"etag" else value)
        for name, value in start["headers"]
    ]
    return {**start, "headers": headers}


def init_app(app: Quart, settings: Settings) -> None:
    """Wrap the request edge in this middleware, unless compression is off."""
    bodies = app.extensions["compressed_bodies"] = CompressedBodies()
    if settings.compression:
        app.asgi_app = CompressionMiddleware(app, app.asgi_app, bodies)  # type: ignore[method-assign]  # Quart's extension point
