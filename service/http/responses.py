"""Responses made from bytes, and their headers."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from hypercorn.typing import ASGISendCallable
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json
from quart import Response, request

from service.cache import ListQuery, ListResult, Status
from service.http.context import context_of

JSON = "application/json"
HTML = "text/html; charset=utf-8"
VARY = "Accept-Encoding, Origin"
SEND_SECONDS = 60.0  # timeout under other servers: with HTTP/2 they wait even for a lost client
LIMITED_VARY = f"{VARY}, Authorization"
PERSONAL = ("/api/", "/admin/")  # every token is checked, and responses may depend on it
CACHE_STATUS = {"hit": "hit", "miss": "fwd=miss", "bypass": "fwd=bypass"}


@dataclass(frozen=True, slots=True)
class ListResponse:
    """A list response, and its source. `headers`: only for status 200."""

    body: bytes
    tag: str
    headers: Mapping[str, str]
    listing: ListQuery
    rows: ListResult


def to_bytes(value: Any) -> bytes:
    """Serialise a response body: fields in declared order, UTF-8."""
    if isinstance(value, BaseModel):
        return value.model_dump_json().encode()
    return TypeAdapter(type(value)).dump_json(value)


def with_items(bodies: Sequence[bytes], others: Mapping[str, Any]) -> bytes:
    """Join the serialised items of a list with the `others`, the further members of its body."""
    return b'{"items":[%b],%b' % (b",".join(bodies), to_json(others)[1:])


def etag(body: bytes) -> str:
    """Return the strong entity tag of a body, without quotes. Other bodies have other tags."""
    return blake2b(body, digest_size=12).hexdigest()


def respond(
    body: bytes,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    content_type: str = JSON,
) -> Response:
    """Return a response with a body. By default, no cache may store it."""
    return Response(body, status=status, headers=dict(headers or {}), content_type=content_type)


def respond_public(body: bytes, *, content_type: str = JSON) -> Response:
    """Respond to a public GET, with an entity tag for revalidation; 304 if the client has it."""
    tag = etag(body)
    if matches_etag(tag, request.headers.getlist("If-None-Match")):
        response = _empty(304)
    else:
        response = respond(body, content_type=content_type)
    response.set_etag(tag)
    response.headers["Cache-Control"] = "no-cache"
    return response


def content_headers(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a JSON body."""
    return [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body))]


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers in ASGI form."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as field lines with CRLF. The caller must ensure valid bytes."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def matches_etag(tag: str, lines: Sequence[str]) -> bool:
    """Return whether the lines of an If-None-Match contain a tag.

    Our tags are hexadecimal digits, so a quoted tag within the line is always a member of the list,
    weak or strong. So the list need not be parsed.
    """
    quoted = f'"{tag}"'
    return any(quoted in line or line.strip() == "*" for line in lines)


def vary_of(scope: Any) -> str:
    """Return the Vary of a response: Authorization matters if tokens or limits are checked."""
    is_limited = context_of(scope).quotas is not None
    return LIMITED_VARY if is_limited or scope["path"].startswith(PERSONAL) else VARY


def cache_status(scope: Any, status: Status) -> dict[str, str]:
    """Return the Cache-Status header (RFC 9211), and record the status."""
    context_of(scope).cache_status = status
    return {"Cache-Status": f"Octavo; {CACHE_STATUS[status]}"}


async def send_response(
    send: ASGISendCallable, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a response without Quart, with Quart's timeout."""
    start: Any = {"type": "http.response.start", "status": status, "headers": headers}
    end: Any = {"type": "http.response.body", "body": body, "more_body": False}
    with suppress(TimeoutError):
        async with asyncio.timeout(SEND_SECONDS):
            await send(start)
            await send(end)


def _empty(status: int) -> Response:
    """Return a response without content, and without headers about it (RFC 9110, 8.6)."""
    response = Response(b"", status=status)
    for name in ("Content-Type", "Content-Length"):
        response.headers.remove(name)
    return response
