"""The header fields of a request, and what they tell: read once, also where many send the same."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from service.config_limits import MOST_HOPS

Pairs = Iterable[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LABEL = rb"[A-Za-z0-9-]{1,63}"
HOST = re.compile(rb"(%b\.)*%b\.?(:[0-9]{1,5})?" % (LABEL, LABEL))
BODY = {b"content-length", b"transfer-encoding"}  # of a request that has one
SPECIAL = {b"content-encoding", b"expect", b"upgrade"}  # it wants what the framework alone knows


class RequestHeaders(NamedTuple):
    """What the fields of a request tell.

    host: the one that is asked, if it is a decent name; else empty. is_special: it is for the
    framework. media: lines of Content-Type. name: of the request, if the client gave it a decent
    one; nobody has to trust one.
    """

    host: bytes
    is_special: bool
    has_body: bool
    has_origin: bool
    media: list[bytes]
    tags: list[str]  # If-None-Match, its lines
    authorization: list[str]  # its lines
    forwarded: list[str]  # X-Forwarded-For, its last addresses, as far as one is worth reading
    name: str


class Fields(tuple[tuple[bytes, bytes], ...]):
    """Header fields, which keep what was found in them. Names are in small letters."""

    told: RequestHeaders | None = None


def parse_headers(headers: Any) -> RequestHeaders:
    """Give what the headers of an ASGI request tell."""
    if not isinstance(headers, Fields):
        return _read(headers)
    if headers.told is None:
        headers.told = _read(headers)
    return headers.told


def _read(headers: Pairs) -> RequestHeaders:
    hosts: list[bytes] = []
    media: list[bytes] = []
    tags: list[str] = []
    authorization: list[str] = []
    forwarded: list[str] = []
    is_special = has_body = has_origin = False
    name = b""
    for key, value in headers:
        if key == b"host":
            hosts.append(value)
        elif key == b"if-none-match":
            tags.append(value.decode("latin-1"))
        elif key == b"authorization":
            authorization.append(value.decode("latin-1"))
        elif key == b"x-forwarded-for":
            last = value.decode("latin-1").rsplit(",", MOST_HOPS)
            forwarded += [one.strip()[:64] for one in last]
        elif key == b"x-request-id":
            name = value
        elif key == b"origin":
            is_special |= has_origin  # a second one
            has_origin = True
        elif key == b"content-type":
            media.append(value)
        elif key in BODY:
            has_body = True
        elif key in SPECIAL:
            is_special = True
    return RequestHeaders(
        hosts[0] if len(hosts) == 1 and HOST.fullmatch(hosts[0]) else b"",
        is_special,
        has_body,
        has_origin,
        media,
        tags,
        authorization,
        forwarded,
        name.decode() if REQUEST_ID.fullmatch(name) else "",
    )
