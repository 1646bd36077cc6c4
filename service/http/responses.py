"""Build and send responses from bytes, with their headers."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from hypercorn.typing import ASGISendCallable
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from quart import Response, request

from service.cache import ListQuery, ListResult, Status
from service.http.compression import CODINGS
from service.http.context import context_of

JSON = "application/json"
HTML = "text/html; charset=utf-8"
VARY = "Accept-Encoding, Origin"
SEND_SECONDS = 60.0  # Quart's default response timeout; HTTP/2 servers may wait for a lost client
LIMITED_VARY = f"{VARY}, Authorization"
NEGOTIATED = "Accept, "  # in front of Vary, if the response depends on Accept
AUTHENTICATED_PREFIXES = ("/api/", "/admin/")  # below these paths every token is checked
TAG_SUFFIXES = ("", *(f"-{coding}" for coding in CODINGS))  # of the forms of a response
CACHE_STATUS = {"hit": "hit", "miss": "fwd=miss", "bypass": "fwd=bypass"}  # RFC 9211, section 2


@dataclass(frozen=True, slots=True)
class ListResponse:
    """A list response. tag: its ETag. headers: not sent with 304. listing, rows: its source."""

    body: bytes
    tag: str
    headers: Mapping[str, str]
    listing: ListQuery
    rows: ListResult


def to_bytes(value: Any) -> bytes:
    """Serialise a response body as JSON: UTF-8, fields in the order of the model."""
    if isinstance(value, BaseModel):
        return value.model_dump_json().encode()
    return TypeAdapter(type(value)).dump_json(value)


def with_items(bodies: Sequence[bytes], others: Mapping[str, Any], name: str = "items") -> bytes:
    """Build the JSON body of a list. name: of the rows. others: the members after; not empty."""
    return b'{"%b":[%b],%b' % (name.encode(), b",".join(bodies), to_json(others)[1:])


def etag(body: bytes) -> str:
    """Return the strong entity tag (RFC 9110, 8.8.3) of a body, a digest, without quotes."""
    return blake2b(body, digest_size=12).hexdigest()


def respond(
    body: bytes,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = JSON,
) -> Response:
    """Return a Quart response. Without a Cache-Control header it gets `no-store` later."""
    return Response(body, status=status, headers=dict(headers or {}), content_type=content_type)


def respond_public(body: bytes, *, content_type: str = JSON) -> Response:
    """Respond to a public GET with an ETag, or with 304 if If-None-Match matches."""
    tag = etag(body)
    if matches_etag(tag, request.headers.getlist("If-None-Match")):
        response = _empty(304)
        context_of(request.scope).unchanged = content_type, len(body)
    else:
        response = respond(body, content_type=content_type)
    response.set_etag(tag)
    response.headers["Cache-Control"] = "no-cache"
    return response


def content_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a JSON body."""
    return [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI pairs: names in lower case, bytes."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as HTTP/1.1 field lines with CRLF. Names and values are not checked."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def matches_etag(tag: str, lines: Sequence[str]) -> bool:
    """Return whether If-None-Match (weak comparison: RFC 9110, 13.1.2) contains a tag.

    lines: the values of the header's field lines. The tag of a compressed form matches too, because
    its content is the same. A substring search is enough: Octavo's tags are hexadecimal digits, so
    a quoted tag within a line is always a member of the list.
    """
    return any(
        line.strip() == "*"
        or (tag in line and any(f'"{tag}{suffix}"' in line for suffix in TAG_SUFFIXES))
        for line in lines
    )


def vary_of(scope: Any) -> str:
    """Return the Vary header. It has Authorization if limits or tokens were checked."""
    context = context_of(scope)
    is_limited = context.quotas is not None or scope["path"].startswith(AUTHENTICATED_PREFIXES)
    vary = LIMITED_VARY if is_limited else VARY
    return NEGOTIATED + vary if context.is_negotiated else vary


def cache_status(scope: Any, status: Status) -> dict[str, str]:
    """Return the Cache-Status header (RFC 9211), and record the status in the context."""
    context_of(scope).cache_status = status
    return {"Cache-Status": f"Octavo; {CACHE_STATUS[status]}"}


async def send_response(
    send: ASGISendCallable, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a response by ASGI, without Quart. Give up silently after SEND_SECONDS."""
    start: Any = {"type": "http.response.start", "status": status, "headers": headers}
    end: Any = {"type": "http.response.body", "body": body, "more_body": False}
    with suppress(TimeoutError):
        async with asyncio.timeout(SEND_SECONDS):
            await send(start)
            await send(end)


async def send_stream(send: ASGISendCallable, parts: AsyncIterable[bytes | str]) -> None:
    """Send the body of a response in parts, each after the client has taken the part before.

    If the client disconnects, or does not take a part within SEND_SECONDS, the response stays
    incomplete. The server then closes the connection, so that the client detects it.
    """
    async for part in parts:
        body = part.encode() if isinstance(part, str) else part
        message: Any = {"type": "http.response.body", "body": body, "more_body": True}
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        except (ConnectionError, TimeoutError):
            return
    end: Any = {"type": "http.response.body", "body": b"", "more_body": False}
    await send(end)


def _empty(status: int) -> Response:
    """Return a response without content, Content-Type and Content-Length (RFC 9110, 8.6)."""
    response = Response(b"", status=status)
    for name in ("Content-Type", "Content-Length"):
        response.headers.remove(name)
    return response
